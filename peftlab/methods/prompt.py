"""Prompt tuning and P-tuning (see `prompt_tuner` for the papers): the recipe's section → a configuration."""

import inspect
from typing import Any

from peftlab.base import Base
from peftlab.errors import ErrorCollector
from peftlab.methods.tuners.prompt import PromptConfig
from peftlab.recipe import Prompt, PTuning


def prompt_config(base: Base, section: Prompt, **shared: Any) -> PromptConfig:
    """The configuration, aimed at the base's word embedding; `shared` is what every method has.

    Raises:
        RecipeError: the base is an encoder with a decoder, or takes no embeddings in the place of tokens.
    """
    name, width = _word_embedding(base)
    return PromptConfig(num_virtual_tokens=section.num_virtual_tokens, width=width, target_modules=[name], **shared)


def p_tuning_config(base: Base, section: PTuning, **shared: Any) -> PromptConfig:
    """As `prompt_config`, with the network that makes the embeddings."""
    name, width = _word_embedding(base)
    return PromptConfig(
        num_virtual_tokens=section.num_virtual_tokens,
        width=width,
        encoder=section.encoder_reparameterization_type,
        encoder_hidden_size=section.encoder_hidden_size or width,
        target_modules=[name],
        **shared,
    )


def _word_embedding(base: Base) -> tuple[str, int]:
    """Its full name, and its width."""
    model: Any = base.model
    kind = model.config.model_type
    with ErrorCollector() as errors:
        if model.config.is_encoder_decoder:
            message = f"virtual tokens have no place in '{kind}', an encoder with a decoder."
            errors.add(message, key="method.type", hint="Take lora, bottleneck or prefix.")
        elif "inputs_embeds" not in inspect.signature(model.base_model.forward).parameters:
            message = f"'{kind}' takes no embeddings in the place of tokens, so no virtual ones."
            errors.add(message, key="method.type", hint="Take lora, bottleneck or prefix.")
    words = model.get_input_embeddings()
    return next(name for name, module in model.named_modules() if module is words), words.embedding_dim

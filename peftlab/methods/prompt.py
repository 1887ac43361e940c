"""Prompt tuning and P-tuning (see `tuners.prompt` for the papers): from recipe section to PEFT configuration."""

import inspect
from typing import Any

from peftlab.base import Base
from peftlab.errors import ErrorCollector
from peftlab.methods.tuners.prompt import PromptConfig
from peftlab.recipe import Prompt, PTuning
from peftlab.tasks import Task


def prompt_config(base: Base, section: Prompt, task: Task) -> PromptConfig:
    """PEFT's configuration; the target is the base's word embedding.

    Raises:
        RecipeError: the base is an encoder-decoder, or does not accept `inputs_embeds`.
    """
    name, width = _word_embedding(base)
    return PromptConfig(num_virtual_tokens=section.num_virtual_tokens, width=width, target_modules=[name])


def p_tuning_config(base: Base, section: PTuning, task: Task) -> PromptConfig:
    """Like `prompt_config`, with the network that computes the embeddings."""
    name, width = _word_embedding(base)
    return PromptConfig(
        num_virtual_tokens=section.num_virtual_tokens,
        width=width,
        encoder=section.encoder_reparameterization_type,
        encoder_hidden_size=section.encoder_hidden_size or width,
        target_modules=[name],
    )


def _word_embedding(base: Base) -> tuple[str, int]:
    """The full name of the word embedding, and its width."""
    model: Any = base.model
    model_type = model.config.model_type
    with ErrorCollector() as errors:
        if model.config.is_encoder_decoder:
            message = f"virtual tokens do not work with '{model_type}', an encoder-decoder."
            errors.add(message, key="method.type", hint="Take lora, bottleneck or prefix.")
        elif "inputs_embeds" not in inspect.signature(model.base_model.forward).parameters:
            message = f"virtual tokens do not work with '{model_type}', which does not accept `inputs_embeds`."
            errors.add(message, key="method.type", hint="Take lora, bottleneck or prefix.")
    embedding = model.get_input_embeddings()
    return next(name for name, module in model.named_modules() if module is embedding), embedding.embedding_dim

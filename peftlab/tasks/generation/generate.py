"""What a model writes for features that only ask: by Transformers' `generate`, up to one of the task's endings."""

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from peftlab.tasks.generation.settings import end_tokens, generation_settings, remove_base_defaults
from peftlab.tasks.inputs.features import Feature
from peftlab.tasks.inputs.inputs import Inputs
from peftlab.tasks.inputs.text import TextInputs
from peftlab.tasks.outputs import Continuation, TextGeneration


@torch.inference_mode()
def generate(
    generation: TextGeneration, model: PreTrainedModel, inputs: Inputs, features: Sequence[Feature], **how: Any
) -> list[Continuation]:
    """What `model` writes for each feature, in one run; `how` is handed on to `generate`.

    Shapes inside: a decoder's prompts are padded on the left, an encoder's texts on the right, to (rows, tokens); each
    step computes (rows × beams, 1).
    """
    assert isinstance(inputs, TextInputs)
    tokenizer, stop_strings = inputs.tokenizer, generation.find_stop_strings(inputs)
    settings = generation_settings(generation, inputs, end_tokens(model))
    remove_base_defaults(model)
    side: Literal["left", "right"] = "right" if model.config.is_encoder_decoder else "left"
    tensors = {name: tensor.to(model.device) for name, tensor in inputs.pad(features, side).items()}
    prediction = cast(Any, model).generate(**tensors, generation_config=settings, tokenizer=tokenizer, **how)
    begun = 1 if model.config.is_encoder_decoder else tensors["input_ids"].shape[1]
    return [_continuation(tokens, stop_strings, settings, tokenizer) for tokens in prediction[:, begun:].cpu()]


def _continuation(
    tokens: torch.Tensor, stop_strings: Sequence[str], settings: GenerationConfig, tokenizer: PreTrainedTokenizerBase
) -> Continuation:
    """Up to where the first ending is."""
    numbers = tokens.tolist()
    stops = [i for i, number in enumerate(numbers) if number in (settings.eos_token_id or ())]
    text = cast(str, tokenizer.decode(numbers[: stops[0]] if stops else numbers, skip_special_tokens=True))
    ends = [place for ending in stop_strings if (place := text.find(ending)) >= 0]
    return Continuation(text[: min(ends)] if ends else text, bool(stops or ends))

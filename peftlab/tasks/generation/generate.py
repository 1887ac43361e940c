"""What a model writes for features that only ask: by Transformers' `generate`, up to one of the task's endings."""

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from peftlab.tasks.inputs.features import Feature
from peftlab.tasks.inputs.inputs import Inputs
from peftlab.tasks.inputs.text import TextInputs
from peftlab.tasks.outputs import Continuation, TextGeneration

DRAWING = ("temperature", "top_p", "top_k")  # settings that mean something with do_sample alone
BEAMS = ("length_penalty",)  # and those with several beams


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
    settings = _settings(generation, model, stop_strings, tokenizer)
    side: Literal["left", "right"] = "right" if model.config.is_encoder_decoder else "left"
    tensors = {name: tensor.to(model.device) for name, tensor in inputs.pad(features, side).items()}
    prediction = cast(Any, model).generate(**tensors, generation_config=settings, tokenizer=tokenizer, **how)
    begun = 1 if model.config.is_encoder_decoder else tensors["input_ids"].shape[1]
    return [_continuation(tokens, stop_strings, settings, tokenizer) for tokens in prediction[:, begun:].cpu()]


def _settings(
    generation: TextGeneration, model: PreTrainedModel, stop_strings: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> GenerationConfig:
    """The adapter's own; it ends with any of `stop_strings`, and with what ends texts of its base."""
    asked = {name: value for name, value in generation.settings.items() if name != "stop_strings"}
    idle = (() if asked.get("do_sample") else DRAWING) + (() if asked.get("num_beams", 1) > 1 else BEAMS)
    asked = {name: value for name, value in asked.items() if name not in idle}
    of_base = getattr(model.generation_config, "eos_token_id", None)
    ids = {*(of_base if isinstance(of_base, list) else [of_base]), *(_token(text, tokenizer) for text in stop_strings)}
    texts = [text for text in stop_strings if _token(text, tokenizer) is None]
    return GenerationConfig(
        **asked,
        **generation.forced_tokens,
        eos_token_id=sorted(token for token in ids if token is not None),
        pad_token_id=tokenizer.pad_token_id,
        stop_strings=texts or None,
    )


def _token(text: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The number of the one special token that this is, if it is one."""
    return tokenizer.get_added_vocab().get(text)


def _continuation(
    tokens: torch.Tensor, stop_strings: Sequence[str], settings: GenerationConfig, tokenizer: PreTrainedTokenizerBase
) -> Continuation:
    """Up to where the first ending is."""
    numbers = tokens.tolist()
    stops = [i for i, number in enumerate(numbers) if number in cast(list[int], settings.eos_token_id)]
    text = cast(str, tokenizer.decode(numbers[: stops[0]] if stops else numbers, skip_special_tokens=True))
    ends = [place for ending in stop_strings if (place := text.find(ending)) >= 0]
    return Continuation(text[: min(ends)] if ends else text, bool(stops or ends))

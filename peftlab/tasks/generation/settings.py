"""Transformers' settings for generating text: the adapter's own, and nothing of the base's defaults.

`generate` fills what is not set from the model's `generation_config`. Many bases on the Hub set a minimum length, a
first token or forbidden repetitions there, which the recipe never asked for.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from peftlab.tasks.inputs.text import TextInputs
from peftlab.tasks.outputs import TextGeneration

SAMPLING_SETTINGS = ("temperature", "top_p", "top_k")  # have an effect with do_sample only
BEAM_SETTINGS = ("length_penalty",)  # have an effect with several beams only
USED_DEFAULTS = ("decoder_start_token_id",)
"""What is taken from the base's `generation_config` besides its end tokens."""
NO_EFFECT = ("use_cache", "cache_implementation", "max_length", "transformers_version", "pad_token_id", "bos_token_id")


def generation_settings(generation: TextGeneration, inputs: TextInputs, base_ends: Sequence[int]) -> GenerationConfig:
    """The settings of an adapter; a text ends with any of its stop strings, or with an end token of its base.

    `base_ends` are these end tokens for adapters of earlier versions, which do not record them. A stop string that is
    one special token is given as a token id.
    """
    tokenizer, stop_strings = inputs.tokenizer, generation.find_stop_strings(inputs)
    recorded = generation.state.get("end_tokens")
    ids = {*(base_ends if recorded is None else recorded), *special_ids(stop_strings, tokenizer)}
    texts = [text for text in stop_strings if special_id(text, tokenizer) is None]
    return GenerationConfig(
        **_effective(generation.settings),
        **generation.forced_tokens,
        eos_token_id=sorted(ids) or None,
        pad_token_id=tokenizer.pad_token_id,
        stop_strings=texts or None,
    )


def _effective(settings: Any) -> dict[str, Any]:
    """The settings without those that have no effect, of which Transformers warns."""
    idle = ["stop_strings"]
    idle += () if settings.get("do_sample") else SAMPLING_SETTINGS
    idle += () if settings.get("num_beams", 1) > 1 else BEAM_SETTINGS
    return {name: value for name, value in settings.items() if name not in idle}


def special_id(text: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of the one special token that a text is, if it is one."""
    return tokenizer.get_added_vocab().get(text)


def special_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[int]:
    """The ids of those texts that are one special token each."""
    return (token for text in texts if (token := special_id(text, tokenizer)) is not None)


def end_tokens(model: PreTrainedModel) -> list[int]:
    """The ids of the tokens that end a text of the base, by its `generation_config`."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [] if found is None else list(found) if isinstance(found, list | tuple) else [found]


def remove_base_defaults(model: PreTrainedModel) -> None:
    """Let `generate` take nothing from the model's own `generation_config` but `USED_DEFAULTS` and the end tokens."""
    own = model.generation_config
    kept = {name: getattr(own, name, None) for name in (*USED_DEFAULTS, "eos_token_id")}
    model.generation_config = GenerationConfig(**kept)


def unused_base_defaults(model: PreTrainedModel) -> dict[str, Any]:
    """The settings in a base's `generation_config` that would change generated texts, and are not used."""
    config = getattr(model, "generation_config", None)
    settings = config.to_diff_dict() if config is not None and model.can_generate() else {}
    ignored = (*NO_EFFECT, *USED_DEFAULTS, "eos_token_id")
    return {k: v for k, v in settings.items() if k not in ignored and not k.startswith(("_", "output_", "return_"))}

"""What a program needs to generate as the adapter does: generation_config.json, tokenizer and chat template."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

from transformers import GenerationConfig, PretrainedConfig

from peftlab.tasks import Feature, Task
from peftlab.tasks.generation.settings import generation_settings, special_id
from peftlab.tasks.inputs.text import TextInputs

OPENING = "{{% if add_generation_prompt %}}{{{{ {opening} }}}}{{% endif %}}"


def exported_generation(task: Task, inputs: TextInputs, base_ends: Sequence[int]) -> GenerationConfig | None:
    """The adapter's settings, with every token that ends its texts; None if its task generates nothing."""
    generation = task.outputs.generation(Feature({}, labels=None))
    return generation_settings(generation, inputs, base_ends) if generation else None


def exported_template(task: Task) -> str | None:
    """The adapter's chat template, which also writes what stands before each answer, such as an empty think block."""
    template: str | None = task.state.get("chat_template")
    opening = task.state.get("answer_opening")
    if not template or not opening:
        return template
    return template.removesuffix("\n") + OPENING.format(opening=json.dumps(opening, ensure_ascii=False))


def save_tokenizer(task: Task, inputs: TextInputs, folder: Path) -> None:
    """Save the tokenizer with the adapter's chat template; its eos token is the one that ends a reply.

    A template that writes `eos_token` itself keeps the base's.
    """
    tokenizer, template = copy.deepcopy(inputs.processor), exported_template(task)
    tokenizer.chat_template = template or tokenizer.chat_template
    ends = task.outputs.learned_stop_strings(inputs)
    if template and "eos_token" not in template and ends and special_id(ends[0], tokenizer) is not None:
        tokenizer.eos_token = ends[0]
    tokenizer.save_pretrained(folder)


def base_end_tokens(folder: Path, config: PretrainedConfig) -> list[int]:
    """The ids of the tokens that end texts of a base, by the files in its folder."""
    try:
        found = GenerationConfig.from_pretrained(folder).eos_token_id
    except OSError:  # it has none
        found = getattr(config, "eos_token_id", None)
    return [] if found is None else list(found) if isinstance(found, list | tuple) else [found]

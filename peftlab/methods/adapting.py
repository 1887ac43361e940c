"""A base + the method section of a recipe → a model of which only the delta and the head train."""

from collections.abc import Callable

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from transformers.pytorch_utils import Conv1D

from peftlab.base import Base
from peftlab.errors import Problems, suggest
from peftlab.methods.lora import lora_config
from peftlab.recipe import Lora
from peftlab.tasks import Task

METHODS: dict[str, Callable[..., PeftConfig]] = {
    "lora": lora_config,
}
LINEAR = (torch.nn.Linear, Conv1D)  # Conv1D is GPT-2's transposed Linear


def adapt(base: Base, section: Lora, task: Task) -> PeftModel:
    """Freeze the base, add the method's delta to it, and leave delta and head to train.

    Raises:
        RecipeError: a name in `target_modules` fits no layer of this base.
    """
    targets = resolve_targets(base, section.target_modules)
    config = METHODS[section.type](
        section, targets, task_type=task.peft_task_type, modules_to_save=list(base.head_modules)
    )
    return get_peft_model(base.model, config)


def resolve_targets(base: Base, wanted: str | list[str]) -> list[str]:
    """Full names of the layers to adapt: every Linear of the base for all-linear, and never one of the head.

    Raises:
        RecipeError: a wanted name, or end of a name, fits no layer.
    """
    linears = [
        name
        for name, module in base.model.named_modules()
        if isinstance(module, LINEAR) and not _inside(name, base.head_modules)
    ]
    if wanted == "all-linear":
        return linears
    with Problems() as problems:
        for target in wanted:
            if not any(_ends_with(name, target) for name in linears):
                ends = {name.rpartition(".")[2] for name in linears}
                problems.add(
                    f"'{target}' fits no Linear layer of this base.",
                    key="method.target_modules",
                    hint=suggest(target, ends, what="Layers end in"),
                )
    return [name for name in linears if any(_ends_with(name, target) for target in wanted)]


def trained_parameters(model: torch.nn.Module) -> int:
    """How many parameters train: delta and head."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _inside(name: str, modules: list[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")

"""A base + the method section of a recipe → a model of which only the delta and the head train."""

from collections.abc import Callable

import torch
from peft import PeftConfig, PeftModel, get_peft_model

from peftlab.base import Base
from peftlab.methods.head import head_config
from peftlab.methods.lora import lora_config
from peftlab.recipe import MethodSection
from peftlab.tasks import Task

METHODS: dict[str, Callable[..., PeftConfig]] = {
    "lora": lora_config,
    "head": head_config,
}


def adapt(base: Base, section: MethodSection, task: Task) -> PeftModel:
    """Freeze the base, add the method's delta to it, and leave delta and head to train.

    Raises:
        RecipeError: this base has no such layer as the section names, or nothing that the method could train.
    """
    return get_peft_model(base.model, peft_config(base, section, task))


def peft_config(base: Base, section: MethodSection, task: Task) -> PeftConfig:
    """What PEFT needs to know of the method, the base and its head.

    Raises:
        RecipeError: as `adapt`.
    """
    shared = {"task_type": task.peft_task_type, "modules_to_save": list(base.head_modules)}
    return METHODS[section.type](base, section, **shared)


def trained_parameters(model: torch.nn.Module) -> int:
    """How many parameters train: delta and head."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

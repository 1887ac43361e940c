"""Every weight of the base trained: what a method with few parameters is up against.

The adapter then holds a whole base, module by module, as a head is held: PEFT saves and loads them as
`modules_to_save`, and the frozen base stays beside them.
"""

from collections.abc import Iterator
from typing import Any

from peft import LoraConfig
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from peftlab.base import Base
from peftlab.errors import ErrorCollector
from peftlab.recipe import Full


def full_config(base: Base, section: Full, *, modules_to_save: list[str], **shared: Any) -> LoraConfig:
    """The PEFT configuration of an adapter that holds every module of the backbone with parameters, and the head.

    Raises:
        RecipeError: the backbone has parameters outside any module inside it, which PEFT could not hold.
    """
    prefix = base.model.base_model_prefix
    backbone = base.model.get_submodule(prefix)
    with ErrorCollector() as errors:
        if loose := [name for name, _ in backbone.named_parameters(recurse=False)]:
            errors.add(f"'full' cannot train {', '.join(loose)} of this base: in no module.", key="method.type")
    parts = [f"{prefix}.{name}" for name in _parts(backbone)]
    new = [name for name in modules_to_save if name not in parts]
    return LoraConfig(target_modules=DUMMY_TARGET_MODULES, modules_to_save=[*parts, *new], **shared)


def _parts(module: nn.Module, path: str = "") -> Iterator[str]:
    """The outermost modules with parameters; PEFT can wrap what is called, and a list of layers is not."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield from _parts(child, f"{path}{name}.")
        elif any(True for _ in child.parameters()):
            yield f"{path}{name}"

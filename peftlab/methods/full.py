"""Full fine-tuning: every weight of the base trains; the baseline for methods with few parameters.

The adapter then holds the whole base, module by module, as PEFT's `modules_to_save`; the frozen base stays beside them.
"""

from collections.abc import Iterator

from peft import LoraConfig
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from peftlab.base import Base
from peftlab.errors import ErrorCollector
from peftlab.recipe import Full
from peftlab.tasks import Task


def full_config(base: Base, section: Full, task: Task) -> LoraConfig:
    """PEFT's configuration of an adapter that holds every module of the backbone with parameters.

    Raises:
        RecipeError: the backbone has parameters outside any module inside it, which PEFT could not hold.
    """
    prefix = base.model.base_model_prefix
    backbone = base.model.get_submodule(prefix)
    with ErrorCollector() as errors:
        if direct := [name for name, _ in backbone.named_parameters(recurse=False)]:
            errors.add(f"'full' cannot train {', '.join(direct)} of this base: in no module.", key="method.type")
    modules = [f"{prefix}.{name}" for name in _outermost_modules(backbone)]
    return LoraConfig(target_modules=DUMMY_TARGET_MODULES, modules_to_save=modules)


def _outermost_modules(module: nn.Module, path: str = "") -> Iterator[str]:
    """The outermost modules with parameters; PEFT wraps modules that are called, and a list of layers is not."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield from _outermost_modules(child, f"{path}{name}.")
        elif any(True for _ in child.parameters()):
            yield f"{path}{name}"

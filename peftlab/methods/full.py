"""Full fine-tuning: every weight of the base trains; the baseline for methods with few parameters.

The adapter holds a trained copy of each module of the base, as PEFT's `modules_to_save`; the frozen base is kept too.
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
        RecipeError: the backbone has parameters that are not in one of its submodules, and PEFT cannot save these.
    """
    prefix = base.model.base_model_prefix
    backbone = base.model.get_submodule(prefix)
    with ErrorCollector() as errors:
        if direct := [name for name, _ in backbone.named_parameters(recurse=False)]:
            errors.add(f"'full' cannot train {', '.join(direct)} of this base: not in a submodule.", key="method.type")
    modules = [f"{prefix}.{name}" for name in _outermost_modules(backbone)]
    return LoraConfig(target_modules=DUMMY_TARGET_MODULES, modules_to_save=modules)


def _outermost_modules(module: nn.Module, path: str = "") -> Iterator[str]:
    """The outermost modules with parameters that have a forward, which PEFT needs: a ModuleList has none."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield from _outermost_modules(child, f"{path}{name}.")
        elif any(True for _ in child.parameters()):
            yield f"{path}{name}"

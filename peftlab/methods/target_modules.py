"""The modules of a base that a method is to adapt, by full name, and never one of the head."""

from collections.abc import Callable

import torch
from transformers.pytorch_utils import Conv1D

from peftlab.base import Base, lm_head_modules
from peftlab.errors import ErrorCollector, suggest
from peftlab.recipe import AdaLora, BitFit, LnTuning, Lora, OtherMethod

LINEAR = (torch.nn.Linear, Conv1D)  # Conv1D is GPT-2's transposed Linear


def resolve_targets(base: Base, section: Lora | AdaLora | OtherMethod) -> list[str]:
    """Full names of the Linear layers to adapt: every one of the base for all-linear.

    With `layers_to_transform`, those of these layers only: what lies outside any layer, such as a pooler, is left out,
    as PEFT does.

    Raises:
        RecipeError: a wanted name, or end of a name, fits no module; a wanted layer is not there or holds none of them.
    """
    linears, wanted = linears_of(base), section.target_modules
    with ErrorCollector() as errors:
        chosen = linears if isinstance(wanted, str) else named(linears, wanted, errors)
        return in_layers(chosen, linears, section.layers_to_transform, errors)


def linears_of(base: Base) -> list[str]:
    """Full names of every Linear of the base."""
    return modules_of(base, LINEAR)


def modules_of(base: Base, kinds: tuple[type[torch.nn.Module], ...] = (torch.nn.Module,)) -> list[str]:
    """Full names of the base's modules of some kinds."""
    head = [*base.head_modules, *lm_head_modules(base.model)]
    found = (name for name, module in base.model.named_modules() if name and isinstance(module, kinds))
    return [name for name in found if not _inside(name, head)]


def every(base: Base, section: BitFit | LnTuning, fits: Callable[[torch.nn.Module], bool], lacking: str) -> list[str]:
    """Full names of the base's modules that `fits`, in the layers that the section wants.

    Raises:
        RecipeError: a wanted layer is not there or holds none of them; the base has none at all, which is `lacking`.
    """
    found = [name for name in modules_of(base) if fits(base.model.get_submodule(name))]
    with ErrorCollector() as errors:
        targets = in_layers(found, found, section.layers_to_transform, errors)
        if not found:
            errors.add(lacking, key="method.type", hint="Take lora or ia3.")
    return targets


def widths(base: Base, name: str) -> tuple[int, int]:
    """How wide the inputs and the outputs of one of `linears_of` are."""
    linear = base.model.get_submodule(name)
    return (linear.nx, linear.nf) if isinstance(linear, Conv1D) else (linear.in_features, linear.out_features)


def layer_names(model: torch.nn.Module) -> list[str]:
    """Full names of the repeated layers, lowest first: of the list of modules that holds most parameters.

    That is the outermost one, where lists lie in lists.
    """
    lists = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m)}
    sizes = {name: sum(parameter.numel() for parameter in layers.parameters()) for name, layers in lists.items()}
    if not lists:
        return []
    largest = max(sizes, key=lambda name: sizes[name])  # the first of several
    return [f"{largest}.{number}" for number in range(len(lists[largest]))]


def named(
    names: list[str],
    wanted: list[str],
    errors: ErrorCollector,
    *,
    what: str = "Linear layer",
    key: str = "target_modules",
) -> list[str]:
    """Those of `names` that are, or end in, one of `wanted`; one that fits none is a problem."""
    for target in wanted:
        if not any(_ends_with(name, target) for name in names):
            hint = suggest(target, {name.rpartition(".")[2] for name in names}, what="Layers end in")
            errors.add(f"'{target}' fits no {what} of this base.", key=f"method.{key}", hint=hint)
    return [name for name in names if any(_ends_with(name, target) for target in wanted)]


def in_layers(chosen: list[str], names: list[str], wanted: int | list[int] | None, errors: ErrorCollector) -> list[str]:
    """Those of `chosen` that lie in the layers `wanted`, of all that `names` tells; None takes all."""
    if wanted is None:
        return chosen
    there = sorted({number for name in names if (number := _layer(name)) is not None})
    inside = [name for name in chosen if _layer(name) in _listed(wanted)]
    absent = [number for number in _listed(wanted) if number not in there]
    for number in absent:
        hint = f"Layers of this base: {there[0]} to {there[-1]}." if there else "This base has none with a number."
        errors.add(f"there is no layer {number}.", key="method.layers_to_transform", hint=hint)
    if chosen and not (inside or absent):
        message = "none of the modules to adapt lies in these layers."
        errors.add(message, key="method.layers_to_transform", hint="Name layers and target_modules that meet.")
    return inside


def _listed(numbers: int | list[int]) -> list[int]:
    return [numbers] if isinstance(numbers, int) else numbers


def _layer(name: str) -> int | None:
    """The layer that a module lies in: the first number in its name, as in `bert.encoder.layer.3.output.dense`."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _inside(name: str, modules: list[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")

"""Find the modules of a base that a method adapts, by full name. Modules of the head are never adapted."""

from collections.abc import Callable

import torch
from transformers.pytorch_utils import Conv1D

from peftlab.base import Base, lm_head_modules
from peftlab.errors import ErrorCollector, suggest
from peftlab.recipe import AdaLora, BitFit, LnTuning, Lora, PeftMethod

LINEAR = (torch.nn.Linear, Conv1D)  # Conv1D is GPT-2's transposed Linear


def resolve_targets(base: Base, section: Lora | AdaLora | PeftMethod) -> list[str]:
    """Full names of the Linear layers to adapt; `all-linear` means every Linear layer of the base.

    `layers_to_transform` restricts them to some layers; as in PEFT, modules outside any layer, such as a pooler, are
    then left out.

    Raises:
        RecipeError: a name matches no module, a layer does not exist, or the layers contain none of the modules.
    """
    linears, wanted = list_linear_layers(base), section.target_modules
    with ErrorCollector() as errors:
        chosen = linears if isinstance(wanted, str) else match_names(linears, wanted, errors)
        return filter_layers(chosen, linears, section.layers_to_transform, errors)


def list_linear_layers(base: Base) -> list[str]:
    """Full names of every Linear of the base."""
    return list_modules(base, LINEAR)


def list_modules(base: Base, types: tuple[type[torch.nn.Module], ...] = (torch.nn.Module,)) -> list[str]:
    """Full names of the base's modules of some types."""
    head = [*base.head_modules, *lm_head_modules(base.model)]
    found = (name for name, module in base.model.named_modules() if name and isinstance(module, types))
    return [name for name in found if not _is_inside(name, head)]


def matching_modules(
    base: Base, section: BitFit | LnTuning, matches: Callable[[torch.nn.Module], bool], none_found: str
) -> list[str]:
    """Full names of the base's modules for which `matches` is true, in the layers that the section names.

    Raises:
        RecipeError: a layer does not exist or contains no such module, or the base has none at all (`none_found`).
    """
    found = [name for name in list_modules(base) if matches(base.model.get_submodule(name))]
    with ErrorCollector() as errors:
        targets = filter_layers(found, found, section.layers_to_transform, errors)
        if not found:
            errors.add(none_found, key="method.type", hint="Take lora or ia3.")
    return targets


def in_out_features(base: Base, name: str) -> tuple[int, int]:
    """Sizes of the inputs and the outputs of a Linear of the base."""
    linear = base.model.get_submodule(name)
    return (linear.nx, linear.nf) if isinstance(linear, Conv1D) else (linear.in_features, linear.out_features)


def layer_names(model: torch.nn.Module) -> list[str]:
    """Full names of the repeated layers, lowest first: the items of the module list with the most parameters.

    If module lists contain module lists, the outermost one is used.
    """
    lists = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m)}
    sizes = {name: sum(parameter.numel() for parameter in layers.parameters()) for name, layers in lists.items()}
    if not lists:
        return []
    largest = max(sizes, key=lambda name: sizes[name])  # the first of several
    return [f"{largest}.{number}" for number in range(len(lists[largest]))]


def match_names(
    names: list[str],
    wanted: list[str],
    errors: ErrorCollector,
    *,
    what: str = "Linear layer",
    key: str = "target_modules",
) -> list[str]:
    """The `names` that equal or end in one of `wanted`; adds an error for each of `wanted` that matches none."""
    for target in wanted:
        if not any(_ends_with(name, target) for name in names):
            hint = suggest(target, {name.rpartition(".")[2] for name in names}, what="Layers end in")
            errors.add(f"'{target}' matches no {what} of this base.", key=f"method.{key}", hint=hint)
    return [name for name in names if any(_ends_with(name, target) for target in wanted)]


def filter_layers(
    chosen: list[str], names: list[str], wanted: int | list[int] | None, errors: ErrorCollector
) -> list[str]:
    """The modules of `chosen` in the layers `wanted`; None means all layers.

    The layers of the base are read from `names`; adds an error for each wanted layer that does not exist.
    """
    if wanted is None:
        return chosen
    existing = sorted({number for name in names if (number := _layer(name)) is not None})
    selected = [name for name in chosen if _layer(name) in _as_list(wanted)]
    missing = [number for number in _as_list(wanted) if number not in existing]
    for number in missing:
        hint = (
            f"Layers of this base: {existing[0]} to {existing[-1]}."
            if existing
            else "This base has no numbered layers."
        )
        errors.add(f"there is no layer {number}.", key="method.layers_to_transform", hint=hint)
    if chosen and not (selected or missing):
        message = "none of the modules to adapt is in these layers."
        errors.add(message, key="method.layers_to_transform", hint="Name layers that contain the target_modules.")
    return selected


def _as_list(numbers: int | list[int]) -> list[int]:
    return [numbers] if isinstance(numbers, int) else numbers


def _layer(name: str) -> int | None:
    """The layer of a module: the first number in its name, as in `bert.encoder.layer.3.output.dense`."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _is_inside(name: str, modules: list[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")

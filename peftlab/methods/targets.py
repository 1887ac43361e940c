"""The Linear layers of a base that a method is to adapt, by full name."""

import torch
from transformers.pytorch_utils import Conv1D

from peftlab.base import Base
from peftlab.errors import Problems, suggest
from peftlab.recipe import Lora

LINEAR = (torch.nn.Linear, Conv1D)  # Conv1D is GPT-2's transposed Linear


def resolve_targets(base: Base, section: Lora) -> list[str]:
    """Full names of the modules to adapt: every Linear of the base for all-linear, and never one of the head.

    With `layers_to_transform`, those of these layers only: what lies outside any layer, such as a pooler, is left out,
    as PEFT does.

    Raises:
        RecipeError: a wanted name, or end of a name, fits no module; a wanted layer is not there or holds none of them.
    """
    linears = [
        name
        for name, module in base.model.named_modules()
        if isinstance(module, LINEAR) and not _inside(name, base.head_modules)
    ]
    with Problems() as problems:
        named = _named(linears, section.target_modules, problems)
        return _in_layers(named, linears, section.layers_to_transform, problems)


def _named(linears: list[str], wanted: str | list[str], problems: Problems) -> list[str]:
    if isinstance(wanted, str):  # all-linear
        return linears
    for target in wanted:
        if not any(_ends_with(name, target) for name in linears):
            ends = {name.rpartition(".")[2] for name in linears}
            problems.add(
                f"'{target}' fits no Linear layer of this base.",
                key="method.target_modules",
                hint=suggest(target, ends, what="Layers end in"),
            )
    return [name for name in linears if any(_ends_with(name, target) for target in wanted)]


def _in_layers(named: list[str], linears: list[str], wanted: int | list[int] | None, problems: Problems) -> list[str]:
    if wanted is None:
        return named
    there = sorted({number for name in linears if (number := _layer(name)) is not None})
    chosen = [name for name in named if _layer(name) in _listed(wanted)]
    absent = [number for number in _listed(wanted) if number not in there]
    for number in absent:
        hint = f"Layers of this base: {there[0]} to {there[-1]}." if there else "This base has none with a number."
        problems.add(f"there is no layer {number}.", key="method.layers_to_transform", hint=hint)
    if named and not (chosen or absent):
        message = "none of the modules to adapt lies in these layers."
        problems.add(message, key="method.layers_to_transform", hint="Name layers and target_modules that meet.")
    return chosen


def _listed(numbers: int | list[int]) -> list[int]:
    return [numbers] if isinstance(numbers, int) else numbers


def _layer(name: str) -> int | None:
    """The layer that a module lies in: the first number in its name, as in `bert.encoder.layer.3.output.dense`."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _inside(name: str, modules: list[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")

"""Which parameters train, and at which rate: `training.freeze` and `training.head_learning_rate`."""

from collections.abc import Iterator, Sequence

import torch
from peft import PeftModel

from peftlab.errors import ErrorCollector, suggest
from peftlab.store import PEFT_PREFIX

WRAPPER_NAMES = (PEFT_PREFIX, "modules_to_save.default.", "base_layer.")
"""Parts of names that PEFT adds to those of the base."""


def freeze_modules(model: PeftModel, names: Sequence[str], method: str) -> None:
    """Freeze the trainable parameters in every module whose dotted name contains one of `names`.

    Raises:
        RecipeError: a name matches no module, or nothing that the method trains, or nothing else is left to train.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    modules = [_base_name(f"{name}.") for name, _ in model.named_modules()]
    with ErrorCollector() as errors:
        for name in names:
            found = [parameter for path, parameter in trainable.items() if _is_part(name, _base_name(path))]
            for parameter in found:
                parameter.requires_grad_(False)
            if not any(_is_part(name, module) for module in modules):
                hint = suggest(name, dict.fromkeys(_parts(modules)), what="Modules")
                errors.add(f"the model has no module '{name}'.", key="training.freeze", hint=hint)
            elif not found:
                message = f"'{method}' trains no parameter in '{name}'."
                errors.add(message, key="training.freeze", hint="Remove the name.")
        if not any(parameter.requires_grad for parameter in trainable.values()):
            errors.add("no parameter is left to train.", key="training.freeze", hint="Remove a name.")


def head_parameters(model: torch.nn.Module, head_modules: Sequence[str]) -> list[torch.nn.Parameter]:
    """The trainable parameters of the new head."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and any(f".{module}.modules_to_save." in f".{name}" for module in head_modules)
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter], rate: float) -> None:
    """Move `parameters` to groups of their own, which differ from the old ones only by this learning rate."""
    chosen = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if id(parameter) in chosen]
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
        if moved:
            optimizer.add_param_group({**group, "params": moved, "lr": rate})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]


def _base_name(name: str) -> str:
    """The name of a parameter or module without what PEFT adds to it."""
    for wrapper in WRAPPER_NAMES:
        name = name.replace(wrapper, "")
    return name


def _is_part(name: str, path: str) -> bool:
    """Whether `name` is `path`, or a part of it between dots."""
    return f".{name}." in f".{path}."


def _parts(modules: Sequence[str]) -> Iterator[str]:
    """Every name between dots in the names of modules, without numbers."""
    for module in modules:
        yield from (part for part in module.split(".") if part and not part.isdecimal())

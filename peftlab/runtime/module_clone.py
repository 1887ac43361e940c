"""Trees of modules that share weights: what is done to the modules of one, no other sees."""

import copy
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def clone_modules(module: nn.Module) -> nn.Module:
    """The same modules anew, on the same weights."""
    twin = copy.copy(module)
    twin.__dict__.update({name: value.copy() for name, value in vars(module).items() if isinstance(value, dict)})
    twin._modules = {name: None if child is None else clone_modules(child) for name, child in module._modules.items()}
    return twin


def replace_child(module: Module, name: str, child: nn.Module) -> Module:
    """The same module with another child of that name; all else is shared."""
    return replace_children(module, {name: child})


def replace_children(module: Module, children: Mapping[str, nn.Module | None]) -> Module:
    """The same module with other children of these names; all else is shared."""
    twin = copy.copy(module)
    twin._modules = {**module._modules, **children}
    return twin


def replace_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The same modules anew, with other parameters and buffers of those names; all else is shared."""
    twin = clone_modules(module)
    for name, tensor in tensors.items():
        path, _, last = name.rpartition(".")
        holder = twin.get_submodule(path)
        if last in holder._parameters:
            holder._parameters[last] = nn.Parameter(tensor, requires_grad=False)
        else:
            holder._buffers[last] = tensor
    return twin

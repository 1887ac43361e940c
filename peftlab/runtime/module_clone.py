"""Copies of module trees that share their weights: changing the modules of one copy changes no other copy."""

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


class ModuleWrapper(nn.Module):
    """A module in the place of `base_layer`; attributes that it lacks, such as `weight`, are those of `base_layer`."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer

    def __getattr__(self, name: str) -> Any:
        """Look up an attribute here, then in `base_layer`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)


def clone_modules(module: nn.Module) -> nn.Module:
    """Copy a module and all modules inside it; parameters and buffers are shared."""
    clone = copy.copy(module)
    clone.__dict__.update({name: value.copy() for name, value in vars(module).items() if isinstance(value, dict)})
    clone._modules = {name: None if child is None else clone_modules(child) for name, child in module._modules.items()}
    return clone


def replace_child(module: Module, name: str, child: nn.Module) -> Module:
    """Copy a module with another child of that name; everything else is shared."""
    return replace_children(module, {name: child})


def replace_children(module: Module, children: Mapping[str, nn.Module | None]) -> Module:
    """Copy a module with other children of these names; everything else is shared."""
    clone = copy.copy(module)
    clone._modules = {**module._modules, **children}
    return clone


def replace_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Copy a module tree with other parameters and buffers of these names; everything else is shared."""
    clone = clone_modules(module)
    for path, tensor in tensors.items():
        parent, _, name = path.rpartition(".")
        owner = clone.get_submodule(parent)
        if name in owner._parameters:
            owner._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        else:
            owner._buffers[name] = tensor
    return clone

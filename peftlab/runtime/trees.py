"""Trees of modules that share weights: what is done to the modules of one, no other sees."""

import copy

from torch import nn


def own_tree(module: nn.Module) -> nn.Module:
    """The same modules anew, on the same weights."""
    twin = copy.copy(module)
    twin.__dict__.update({name: value.copy() for name, value in vars(module).items() if isinstance(value, dict)})
    twin._modules = {name: None if child is None else own_tree(child) for name, child in module._modules.items()}
    return twin


def with_child(module: nn.Module, name: str, child: nn.Module) -> nn.Module:
    """The same module with another child of that name; all else is shared."""
    twin = copy.copy(module)
    twin._modules = {**module._modules, name: child}
    return twin

"""Find and replace the backbone of a model: the part that Transformers' `AutoModel` builds, without the head.

In most models it is one child module, named by `base_model_prefix`. In T5 and related models, encoder, decoder and
embeddings are children of the model itself, next to the head.
"""

from collections.abc import Mapping
from typing import TypeVar, cast

from torch import nn
from transformers import PreTrainedModel

from peftlab.runtime.module_clone import replace_children

Model = TypeVar("Model", bound=nn.Module)


def backbone_in(model: PreTrainedModel, like: nn.Module) -> nn.Module:
    """The backbone of `model`; it has the class of `like`."""
    if prefix := _prefix(model):
        return cast(nn.Module, model._modules[prefix])
    return replace_children(like, {name: model._modules[name] for name in like._modules})


def with_backbone(model: Model, backbone: nn.Module, like: nn.Module | None = None) -> Model:
    """Copy a model with another backbone; everything else is shared.

    `backbone` may be any module with the same `forward` arguments. For models without a
    prefix, `like` names the backbone's children.
    """
    return replace_children(model, _backbone_children(model, backbone, like or backbone))


def set_backbone(model: PreTrainedModel, backbone: nn.Module) -> None:
    """Replace the backbone of `model` itself.

    If its class is another one, such as T5's encoder for token classification, it takes the modules and tensors of the
    same names.
    """
    if not (prefix := _prefix(model)):
        model._modules.update(backbone._modules)
    elif type(own := cast(nn.Module, model._modules[prefix])) is type(backbone):
        model._modules[prefix] = backbone
    else:
        _share(own, backbone)


def _share(module: nn.Module, other: nn.Module) -> None:
    """Put the children, parameters and buffers of `other` into `module`, where it has some of the same names."""
    for kind in ("_parameters", "_buffers"):
        own, others = vars(module)[kind], vars(other)[kind]
        own.update({name: others[name] for name in own if name in others})
    for name, child in module._modules.items():
        other_child = other._modules.get(name)
        if child is not None and other_child is not None:
            if type(child) is type(other_child):
                module._modules[name] = other_child
            else:
                _share(child, other_child)


def path_of_backbone(model: PreTrainedModel) -> str:
    """The prefix of names of the backbone's modules in `model`: the child's name and a dot, or an empty string."""
    prefix = _prefix(model)
    return f"{prefix}." if prefix else ""


def _backbone_children(model: nn.Module, backbone: nn.Module, like: nn.Module) -> Mapping[str, nn.Module | None]:
    if prefix := _prefix(model):
        return {prefix: backbone}
    return {name: backbone._modules.get(name, backbone) for name in like._modules}


def _prefix(model: nn.Module) -> str:
    prefix = cast(PreTrainedModel, model).base_model_prefix
    return prefix if prefix in model._modules else ""

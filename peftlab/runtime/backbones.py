"""Where the backbone is in a model: what Transformers' `AutoModel` has of it, without the head.

Most models hold it as one child, by the name of their family. T5 and its kin hold encoder, decoder and embeddings
themselves, beside the head.
"""

from collections.abc import Mapping
from typing import TypeVar, cast

from torch import nn
from transformers import PreTrainedModel

from peftlab.runtime.module_clone import replace_children

Model = TypeVar("Model", bound=nn.Module)


def backbone_in(model: PreTrainedModel, like: nn.Module) -> nn.Module:
    """The backbone of `model`, which is of the same class as `like`."""
    if prefix := _child(model):
        return cast(nn.Module, model._modules[prefix])
    return replace_children(like, {name: model._modules[name] for name in like._modules})


def with_backbone(model: Model, backbone: nn.Module, like: nn.Module | None = None) -> Model:
    """The same model with another backbone, or whatever is called in place of one; all else is shared.

    `like` tells which modules are the backbone's where `backbone` does not.
    """
    return replace_children(model, _placed(model, backbone, like or backbone))


def put_backbone(model: PreTrainedModel, backbone: nn.Module) -> None:
    """Give `model` itself this backbone."""
    model._modules.update(_placed(model, backbone, backbone))


def path_of_backbone(model: PreTrainedModel) -> str:
    """What names of the backbone's modules begin with in `model`: the child's name and a dot, or nothing."""
    prefix = _child(model)
    return f"{prefix}." if prefix else ""


def _placed(model: nn.Module, backbone: nn.Module, like: nn.Module) -> Mapping[str, nn.Module | None]:
    if prefix := _child(model):
        return {prefix: backbone}
    return {name: backbone._modules.get(name, backbone) for name in like._modules}


def _child(model: nn.Module) -> str:
    prefix = cast(PreTrainedModel, model).base_model_prefix
    return prefix if prefix in model._modules else ""

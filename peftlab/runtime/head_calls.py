"""Run a model's head on backbone outputs, and find out with which arguments the model's class calls its backbone.

Many classes only pass their inputs on. Others add or change some first: Longformer for classification lets the first
token attend to all, T5 for classification derives the inputs of the decoder. So the class itself is called, once with a
backbone that only records the call, and once with a backbone whose output is already computed.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from peftlab.runtime.backbones import path_of_backbone, with_backbone
from peftlab.runtime.module_clone import ModuleWrapper

Arguments = Mapping[str, Any]
"""Keyword arguments of a backbone."""


def apply_head(model: Any, backbone: nn.Module, states: Any, inputs: Mapping[str, Tensor]) -> Any:
    """Compute the output of a Transformers model from `states`, the output of its backbone for `inputs`."""
    return with_backbone(model, PrecomputedBackbone(backbone, states))(**inputs)


def record_call(model: Any, backbone: nn.Module, inputs: Mapping[str, Tensor]) -> Arguments | None:
    """The arguments with which the model's class calls its backbone for these inputs.

    Returns:
        None if the class does not call it: T5 for question answering calls encoder and decoder itself.
    """
    if not path_of_backbone(model):
        return None
    try:
        with_backbone(model, RecordingBackbone(backbone))(**inputs)
    except _BackboneCalled as call:
        return call.arguments
    return None


def join_arguments(calls: Sequence[Arguments]) -> Arguments:
    """The arguments for the rows of several calls of one layout."""
    first = calls[0]
    if len(calls) == 1:
        return first
    return {
        name: torch.cat([call[name] for call in calls]) if isinstance(value, Tensor) else value
        for name, value in first.items()
    }


def layout_of(arguments: Arguments) -> tuple[Any, ...]:
    """Equal for calls whose rows can share a forward pass."""
    return tuple(
        (name, (value.dtype, *value.shape[1:]) if isinstance(value, Tensor) else repr(value))
        for name, value in sorted(arguments.items())
    )


class _BackboneCalled(Exception):  # ends a forward pass; nothing is wrong
    def __init__(self, arguments: Arguments) -> None:
        super().__init__()
        self.arguments = arguments


class RecordingBackbone(ModuleWrapper):
    """A backbone that ends the forward pass of its model when it is called."""

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise the arguments, by name, without those that say nothing."""
        named = dict(zip(inspect.signature(self.base_layer.forward).parameters, args, strict=False)) | kwargs
        raise _BackboneCalled({k: v for k, v in named.items() if v is not None and k != "return_dict"})


class PrecomputedBackbone(ModuleWrapper):
    """A backbone whose output is already computed."""

    def __init__(self, base_layer: nn.Module, output: Any) -> None:
        super().__init__(base_layer)
        self.output = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output, whatever the inputs are."""
        return self.output


def to_float32(states: ModelOutput) -> ModelOutput:
    """Convert the backbone's output to fp32, in which trained heads compute."""
    if all(value.dtype == torch.float32 for value in states.values() if isinstance(value, Tensor)):
        return states
    return type(states)(**{k: v.float() if isinstance(v, Tensor) else v for k, v in states.items()})


def slice_output(value: Any, part: slice) -> Any:
    """Select some rows of the tensors of an output."""
    if isinstance(value, Tensor):
        return value[part]
    return type(value)(**{k: v[part] for k, v in value.items() if isinstance(v, Tensor)}) if value else value

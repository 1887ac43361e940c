"""Find the frozen layers, those below the lowest trainable parameter of a model, and run them without dropout.

They are found by running two rows, not by architecture names: each layer passes one tensor (batch, tokens, hidden)
to the next, and autograd shows which of these depend on a trainable parameter.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.methods.target_modules import layer_names
from peftlab.tasks import Feature
from peftlab.tasks.prediction import module_mode
from peftlab.tuning.run import Run

TOLERANCE = 1e-4  # relative; rounding differs with the length to which a batch is padded
LOW_PRECISION_TOLERANCE = 5e-2  # of 16-bit values


class CacheUnavailable(Exception):
    """Why the activations of this model cannot be cached, or should not be."""


@dataclass(frozen=True)
class FrozenPrefix:
    """The layers of a Transformers model, of which the first `num_frozen` do not depend on trainable parameters.

    Attributes:
        model: The model.
        layers: All layers, in order.
        num_frozen: How many of them are frozen.
        modules: The outermost modules that have finished when the last frozen layer finishes.
        token_bytes: Size of the activations of one token.
        num_extra_outputs: How many more values a layer returns in a tuple; None if it returns only the tensor.
    """

    model: nn.Module
    layers: list[nn.Module]
    num_frozen: int
    modules: list[nn.Module]
    token_bytes: int
    num_extra_outputs: int | None

    def __str__(self) -> str:
        return f"{self.num_frozen} of {len(self.layers)} layers are frozen"

    def layer_output(self, states: Tensor) -> Any:
        """`states` in the form in which the layers return them."""
        return states if self.num_extra_outputs is None else (states, *[None] * self.num_extra_outputs)


def find_frozen_prefix(run: Run) -> FrozenPrefix | None:
    """The frozen layers of the run's model, or None if the lowest layer is trained.

    Raises:
        CacheUnavailable: the frozen layers cannot be determined, or they are random even without dropout.
    """
    model = run.model.get_base_model()
    layers = [model.get_submodule(name) for name in layer_names(model)]
    if not layers or any(parameter.requires_grad for parameter in layers[0].parameters()):
        return None
    if model.config.is_encoder_decoder:
        raise CacheUnavailable("the base is an encoder-decoder")
    if model.device.type == "cuda" and torch.cuda.device_count() > 1:
        raise CacheUnavailable("training uses several GPUs")
    batch = run.model_inputs(shortest_and_longest(run.train_features))
    mask = run.base.inputs.mask(batch)
    if mask is None:
        raise CacheUnavailable("its inputs are not one value per token")
    trace = _trace_forward(model, layers, batch)
    prefix = trace.frozen_prefix(model, layers, mask.shape)
    if prefix:
        _check_deterministic(prefix, batch, trace)
    return prefix


def shortest_and_longest(features: Sequence[Feature]) -> list[Feature]:
    """A batch with the most padding."""
    return [min(features, key=len), max(features, key=len)]


def _outermost(modules: list[nn.Module]) -> list[nn.Module]:
    """The modules without duplicates and without those inside another."""
    inside = {inner for module in modules for inner in module.modules() if inner is not module}
    return [module for module in dict.fromkeys(modules) if module not in inside]


@dataclass
class _Trace:
    """A recorded forward pass: the output of each layer and the order in which modules finished."""

    outputs: list[tuple[int, Any]] = field(default_factory=list)
    finished: list[nn.Module] = field(default_factory=list)

    def states(self, number: int) -> Any:
        """The output tensor of layer `number`."""
        return hidden_states(self.outputs[number][1])

    def frozen_prefix(self, model: nn.Module, layers: list[nn.Module], shape: torch.Size) -> FrozenPrefix | None:
        """The layers that no gradient reaches, or None if one reaches the lowest layer."""
        if self.outputs and getattr(self.states(0), "requires_grad", False):
            return None  # checked before shapes, because virtual tokens make the input of the lowest layer longer
        self._check_sequential(len(layers), shape)
        num_frozen = next((i for i in range(len(layers)) if self.states(i).requires_grad), len(layers))
        last = self.finished.index(layers[num_frozen - 1])
        below, above = self.finished[: last + 1], self.finished[last + 1 :]
        if set(below) & set(above):
            raise CacheUnavailable("its layers share modules")
        output, states = self.outputs[num_frozen - 1][1], self.states(num_frozen - 1)
        num_extra = len(output) - 1 if isinstance(output, tuple) else None
        token_bytes = states.shape[-1] * states.dtype.itemsize
        return FrozenPrefix(model, layers, num_frozen, _outermost(below), token_bytes, num_extra)

    def _check_sequential(self, num_layers: int, shape: torch.Size) -> None:
        """Check that each layer ran once, in order, and returned (batch, tokens, hidden)."""
        tensors = [self.states(i) for i in range(len(self.outputs))]
        if [number for number, _ in self.outputs] != list(range(num_layers)) or not all(
            isinstance(tensor, Tensor) and tensor.dim() == 3 and tensor.shape[:2] == shape for tensor in tensors
        ):
            raise CacheUnavailable("the base's layers are not a plain sequence")


def _trace_forward(model: nn.Module, layers: list[nn.Module], batch: dict[str, Tensor]) -> _Trace:
    """Run `batch` without dropout and with gradients."""
    trace, numbers = _Trace(), {id(layer): number for number, layer in enumerate(layers)}

    def record(module: nn.Module, args: Any, output: Any) -> None:
        trace.finished.append(module)
        if id(module) in numbers:
            trace.outputs.append((numbers[id(module)], output))

    hooks = [module.register_forward_hook(record) for module in model.modules()]
    try:
        with torch.enable_grad(), module_mode(model, training=False):
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return trace


def _check_deterministic(prefix: FrozenPrefix, batch: dict[str, Tensor], trace: _Trace) -> None:
    """Check that in training the frozen layers give the same output as in prediction."""
    device = next(prefix.model.parameters()).device
    outputs: list[Tensor] = []
    last = prefix.layers[prefix.num_frozen - 1]
    hook = last.register_forward_hook(lambda layer, args, output: outputs.append(hidden_states(output)))
    try:
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.no_grad(),
            without_dropout(prefix),
            module_mode(prefix.model, training=True),
        ):
            prefix.model(**batch)
    finally:
        hook.remove()
    if not allclose(trace.states(prefix.num_frozen - 1), outputs[0], outputs[0].dtype):
        raise CacheUnavailable("they are random even without dropout")


@contextmanager
def without_dropout(prefix: FrozenPrefix) -> Iterator[None]:
    """Inside the block the frozen modules stay in evaluation mode, even if Trainer calls `model.train()`.

    `train` is replaced, because otherwise Trainer would turn dropout on again in every step, and activations that
    change in every epoch cannot be cached (decision 0012; gain: see `_replaced_forward` in activation_cache.py).
    """
    for module in prefix.modules:
        module.eval()
        module.train = partial(_keep_mode, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in prefix.modules:
            del module.train
            module.train(prefix.model.training)


def _keep_mode(module: nn.Module, mode: bool = True) -> nn.Module:
    """Replaces `module.train`."""
    return module


def hidden_states(output: Any) -> Any:
    """The activations that a layer returns, alone or first in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def allclose(expected: Tensor, found: Tensor, dtype: torch.dtype) -> bool:
    """Whether two tensors that were computed in `dtype` are equal up to rounding."""
    tolerance = TOLERANCE if dtype.itemsize >= 4 else LOW_PRECISION_TOLERANCE
    return bool((expected - found).abs().max() <= tolerance * max(1.0, float(expected.abs().max())))

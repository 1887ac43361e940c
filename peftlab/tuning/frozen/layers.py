"""Which layers of a model lie below all that trains, and how to keep dropout out of them.

Which modules are layers, and where the frozen ones end, is found by running two rows, not by names of architectures:
they hand one tensor of (batch, tokens, hidden) from each to the next, and autograd says which of these depend on
anything that trains.
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

TOLERANCE = 1e-4  # relative; rounding differs with the width that a batch is padded to
COARSE_TOLERANCE = 5e-2  # of 16-bit values


class CacheUnavailable(Exception):
    """Why this model's activations cannot be kept, or are not."""


@dataclass(frozen=True)
class FrozenPrefix:
    """The layers of a Transformers model, of which the first `frozen` depend on nothing that trains.

    `below` are the modules that are done when the last of these is, `token_bytes` the size of the activations of one
    token, `extras` how many more things a layer returns beside them (None: it returns them bare).
    """

    model: nn.Module
    layers: list[nn.Module]
    frozen: int
    below: list[nn.Module]
    token_bytes: int
    extras: int | None

    def __str__(self) -> str:
        return f"{self.frozen} of {len(self.layers)} layers lie below all that trains"

    def answer(self, states: Tensor) -> Any:
        """`states` in the form in which the layers return them."""
        return states if self.extras is None else (states, *[None] * self.extras)


def find_frozen_prefix(run: Run) -> FrozenPrefix | None:
    """The frozen layers of the run's model, or None where the lowest one is adapted.

    Raises:
        Unsuited: it cannot be told which layers are frozen, or they are random even without their dropout.
    """
    model = run.model.get_base_model()
    layers = [model.get_submodule(name) for name in layer_names(model)]
    if not layers or any(parameter.requires_grad for parameter in layers[0].parameters()):
        return None
    if model.config.is_encoder_decoder:
        raise CacheUnavailable("the base is an encoder with a decoder")
    if model.device.type == "cuda" and torch.cuda.device_count() > 1:
        raise CacheUnavailable("training uses several GPUs")
    batch = run.model_inputs(shortest_and_longest(run.train_features))
    mask = run.base.inputs.mask(batch)
    if mask is None:
        raise CacheUnavailable("its inputs are not one value per token")
    trace = _traced(model, layers, batch)
    prefix = trace.prefix(model, layers, mask.shape)
    if prefix:
        _check_repeats(prefix, batch, trace)
    return prefix


def shortest_and_longest(features: Sequence[Feature]) -> list[Feature]:
    """The shortest and the longest: a batch that is padded most."""
    return [min(features, key=len), max(features, key=len)]


def _outermost(modules: list[nn.Module]) -> list[nn.Module]:
    """Each module once, and none that lies in another."""
    inside = {inner for module in modules for inner in module.modules() if inner is not module}
    return [module for module in dict.fromkeys(modules) if module not in inside]


@dataclass
class _Trace:
    """What went on in a forward pass: which layer gave what, in order, and which modules were done when."""

    outputs: list[tuple[int, Any]] = field(default_factory=list)
    done: list[nn.Module] = field(default_factory=list)

    def states(self, number: int) -> Any:
        """What left layer `number`."""
        return states_of(self.outputs[number][1])

    def prefix(self, model: nn.Module, layers: list[nn.Module], shape: torch.Size) -> FrozenPrefix | None:
        """The layers that no gradient reaches; None if the lowest already is reached."""
        if self.outputs and getattr(self.states(0), "requires_grad", False):
            return None  # before any look at shapes: virtual tokens make the input of the lowest layer longer
        self._check(len(layers), shape)
        frozen = next((i for i in range(len(layers)) if self.states(i).requires_grad), len(layers))
        last = self.done.index(layers[frozen - 1])
        below, above = self.done[: last + 1], self.done[last + 1 :]
        if set(below) & set(above):
            raise CacheUnavailable("its layers share modules")
        output, states = self.outputs[frozen - 1][1], self.states(frozen - 1)
        extras = len(output) - 1 if isinstance(output, tuple) else None
        return FrozenPrefix(model, layers, frozen, _outermost(below), states.shape[-1] * states.dtype.itemsize, extras)

    def _check(self, count: int, shape: torch.Size) -> None:
        """Each layer ran once, in order, and gave (batch, tokens, hidden)."""
        tensors = [self.states(i) for i in range(len(self.outputs))]
        if [number for number, _ in self.outputs] != list(range(count)) or not all(
            isinstance(tensor, Tensor) and tensor.dim() == 3 and tensor.shape[:2] == shape for tensor in tensors
        ):
            raise CacheUnavailable("the base's layers do not simply follow one another")


def _traced(model: nn.Module, layers: list[nn.Module], batch: dict[str, Tensor]) -> _Trace:
    """Run `batch` as it stands, without dropout and with gradients."""
    trace, numbers = _Trace(), {id(layer): number for number, layer in enumerate(layers)}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        trace.done.append(module)
        if id(module) in numbers:
            trace.outputs.append((numbers[id(module)], output))

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.enable_grad(), module_mode(model, training=False):
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return trace


def _check_repeats(prefix: FrozenPrefix, batch: dict[str, Tensor], trace: _Trace) -> None:
    """In training the frozen layers must give just what they give in prediction."""
    device = next(prefix.model.parameters()).device
    again: list[Tensor] = []
    last = prefix.layers[prefix.frozen - 1]
    hook = last.register_forward_hook(lambda layer, args, output: again.append(states_of(output)))
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
    if not allclose(trace.states(prefix.frozen - 1), again[0], again[0].dtype):
        raise CacheUnavailable("something random is left in them")


@contextmanager
def without_dropout(prefix: FrozenPrefix) -> Iterator[None]:
    """Inside the block the frozen part stays in evaluation, whoever sets the model to training."""
    for module in prefix.below:
        module.eval()
        module.train = partial(_stay, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in prefix.below:
            del module.train
            module.train(prefix.model.training)


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """In the place of `module.train`."""
    return module


def states_of(output: Any) -> Any:
    """A layer gives its activations bare, or first in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def allclose(expected: Tensor, found: Tensor, dtype: torch.dtype) -> bool:
    """Whether two tensors, computed in `dtype`, are equal but for rounding."""
    tolerance = TOLERANCE if dtype.itemsize >= 4 else COARSE_TOLERANCE
    return bool((expected - found).abs().max() <= tolerance * max(1.0, float(expected.abs().max())))

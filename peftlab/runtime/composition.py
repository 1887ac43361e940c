"""Compose several adapters into one: a stack, an average, or an ensemble.

stack      Each adapter's modules wrap those of the adapter below (Pfeiffer et al. 2020, MAD-X, arXiv:2005.00052: a
           language or domain below a task); LoRA updates are added. Head and task are those of the top adapter.
average    Weighted sum of the adapters' deltas, and of their heads (Wortsman et al. 2022, Model soups,
           arXiv:2203.05482; Chronopoulou et al. 2023, AdapterSoup, arXiv:2302.07027). It is exact for LoRA of any rank;
           for other modules the parameters are averaged.
ensemble   Each adapter predicts by itself; the weighted mean of their logits is decoded.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeGuard, cast, get_args

import torch
from torch import Tensor, nn

from peftlab.errors import IntegrityError, suggest
from peftlab.runtime.adapter_template import LoadedAdapter
from peftlab.runtime.low_rank import LowRankUpdate, concat_updates
from peftlab.runtime.module_clone import ModuleWrapper, replace_child, replace_tensors
from peftlab.runtime.routing import AdapterModule
from peftlab.runtime.token_embeddings import has_token_embeddings
from peftlab.store import AdapterVersion

CompositionMode = Literal["stack", "average", "ensemble"]


@dataclass(frozen=True)
class Composition:
    """Names of adapters and how they are composed; the weights of an average or an ensemble add up to 1."""

    mode: CompositionMode
    names: tuple[str, ...]
    weights: tuple[float, ...]


def make_composition(
    mode: CompositionMode, names: Sequence[str], weights: Sequence[float] | None = None
) -> Composition:
    """Check the arguments of `Bank.compose` and normalize the weights.

    Raises:
        ValueError: unknown mode, fewer than two names, or not as many weights as names.
    """
    if mode not in get_args(CompositionMode):
        raise ValueError(f"no composition mode '{mode}'. {suggest(mode, get_args(CompositionMode))}")
    if len(names) < 2:
        raise ValueError(f"a composition by {mode} needs at least two adapters, not {len(names)}")
    given_weights = list(weights) if weights is not None else [1.0] * len(names)
    total = sum(given_weights)
    if len(given_weights) != len(names) or total <= 0:
        raise ValueError(f"{len(names)} adapters need {len(names)} weights with a sum above 0, not {given_weights}")
    if mode == "stack" and weights is not None:
        raise ValueError("a stack has no weights")
    return Composition(mode, tuple(names), tuple(weight / total for weight in given_weights))


@dataclass(frozen=True)
class CompositeVersion:
    """A composition of certain versions of adapters."""

    mode: CompositionMode
    parts: tuple[AdapterVersion, ...]
    weights: tuple[float, ...]

    def __str__(self) -> str:
        return f"the {self.mode} of {', '.join(map(str, self.parts))}"

    def refuse(self, reason: str) -> NoReturn:
        """Raise IntegrityError with a reason why these adapters cannot be composed."""
        raise IntegrityError(f"{self} cannot be composed: {reason}")


def parts_of(key: AdapterVersion | CompositeVersion) -> tuple[AdapterVersion, ...]:
    """The versions that a key consists of."""
    return key.parts if isinstance(key, CompositeVersion) else (key,)


def is_ensemble(key: AdapterVersion | CompositeVersion) -> TypeGuard[CompositeVersion]:
    """Whether each part predicts by itself."""
    return isinstance(key, CompositeVersion) and key.mode == "ensemble"


def compose_adapters(version: CompositeVersion, parts: Sequence[LoadedAdapter]) -> LoadedAdapter:
    """Compose adapters into a stack or an average.

    Raises:
        IntegrityError: these adapters cannot be composed.
    """
    if version.mode == "ensemble":
        raise ValueError("each part of an ensemble predicts by itself")
    if unrouted := [str(part.adapter) for part in parts if not part.is_routed]:
        version.refuse(f"{', '.join(unrouted)} changes more than single modules of the base.")
    top = parts[-1]
    if version.mode == "stack":
        if names := [str(part.adapter) for part in parts if has_token_embeddings(part.model)]:
            version.refuse(f"{', '.join(names)} has its own embeddings for some tokens.")
        modules = {name: _stack(version, parts) for name, parts in _modules_by_name(version, parts)}
        return LoadedAdapter(top.adapter, top.task, modules, top.model, is_routed=True)
    check_same_outputs(version, parts)
    modules = {name: _average(version, parts) for name, parts in _modules_by_name(version, parts)}
    model = cast(Any, _average_tensors(version, [part.model for part in parts]))
    return LoadedAdapter(top.adapter, top.task, modules, model, is_routed=True)


def average_logits(version: CompositeVersion, logits: Sequence[Tensor]) -> Tensor:
    """The weighted mean of the logits of an ensemble's parts for one feature."""
    return cast(Tensor, sum(weight * tensor for weight, tensor in zip(version.weights, logits, strict=True)))


def check_same_outputs(version: CompositeVersion, parts: Sequence[LoadedAdapter]) -> None:
    """Refuse adapters whose logits have different meanings.

    Raises:
        IntegrityError: they have different tasks or labels, or an ensemble has no labels to average.
    """
    first = parts[0]
    for part in parts[1:]:
        if (part.task.type, part.task.head.labels) != (first.task.type, first.task.head.labels):
            version.refuse(
                f"{first.adapter} ({first.task.type}) has the labels {', '.join(first.task.head.labels)}; "
                f"{part.adapter} ({part.task.type}) has {', '.join(part.task.head.labels)}."
            )
        if not is_ensemble(version) and part.task.head.pooling != first.task.head.pooling:
            version.refuse(
                f"the head of {first.adapter} reads {first.task.head.reads}, that of {part.adapter} "
                f"{part.task.head.reads}. Take an ensemble."
            )
    if is_ensemble(version) and not first.task.head.labels:
        version.refuse(f"{first.task.outputs.not_averaged}. Take an average.")


def _modules_by_name(
    version: CompositeVersion, parts: Sequence[LoadedAdapter]
) -> Iterator[tuple[str, list[AdapterModule | None]]]:
    """Yield, for each module of the base that a part replaces, the replacement in each part.

    Raises:
        IntegrityError: one part changes a module inside a module that another part replaces.
    """
    names = list(dict.fromkeys(name for part in parts for name in part.modules))
    inner = next((name for name in names if any(name.startswith(f"{other}.") for other in names)), None)
    if inner:
        version.refuse(f"one changes '{inner}', another replaces the module that contains it.")
    for name in names:
        yield name, [part.modules.get(name) for part in parts]


def _stack(version: CompositeVersion, modules: Sequence[AdapterModule | None]) -> AdapterModule:
    below, *above = [module for module in modules if module is not None]
    for module in above:
        below = _stack_on(version, module, below)
    return below


def _stack_on(version: CompositeVersion, module: AdapterModule, below: AdapterModule) -> AdapterModule:
    if isinstance(module, LowRankUpdate):
        return concat_updates([module, below]) if isinstance(below, LowRankUpdate) else _UpdatedModule(below, module)
    if "base_layer" not in module._modules:
        version.refuse("the upper one does not wrap the module below, but replaces it.")
    below = _UpdatedModule(below.base_layer, below) if isinstance(below, LowRankUpdate) else below
    return replace_child(module, "base_layer", below)


class _UpdatedModule(ModuleWrapper):
    """A module with a LoRA update added to its output."""

    def __init__(self, base_layer: nn.Module, update: LowRankUpdate) -> None:
        super().__init__(base_layer)
        self.update = update

    def forward(self, x: Tensor) -> Tensor:
        """base_layer(x) + B A x."""
        return cast(Tensor, self.base_layer(x)) + self.update.delta(x)


def _average(version: CompositeVersion, modules: Sequence[AdapterModule | None]) -> AdapterModule:
    updates = [module for module in modules if isinstance(module, LowRankUpdate)]
    if len(updates) == sum(module is not None for module in modules):
        weights = [weight for weight, module in zip(version.weights, modules, strict=True) if module is not None]
        return concat_updates(updates, weights)
    if len({type(module) for module in modules}) > 1:
        version.refuse("the adapters are of different methods, or change other modules.")
    return _average_tensors(version, cast(Sequence[nn.Module], modules))


def _average_tensors(version: CompositeVersion, modules: Sequence[nn.Module]) -> nn.Module:
    """Copy the first module with the weighted mean of all tensors that the modules do not share."""
    states = [module.state_dict(keep_vars=True) for module in modules]
    shapes: list[Mapping[str, Any]] = [{name: t.shape for name, t in state.items()} for state in states]
    if any(other != shapes[0] for other in shapes[1:]):
        version.refuse("the adapters have tensors of different names or shapes.")
    distinct = [name for name, tensor in states[0].items() if any(state[name] is not tensor for state in states[1:])]
    means = {name: _average_tensor(version, [state[name] for state in states]) for name in distinct}
    return replace_tensors(modules[0], means)


def _average_tensor(version: CompositeVersion, tensors: Sequence[Tensor]) -> Tensor:
    if not tensors[0].is_floating_point():
        if all(torch.equal(tensors[0], other) for other in tensors[1:]):
            return tensors[0]
        version.refuse("the adapters change different positions of the base's weights.")
    weighted = (weight * tensor.detach() for weight, tensor in zip(version.weights, tensors, strict=True))
    return cast(Tensor, sum(weighted))

"""Several adapters as one: stacked, averaged, or asked together.

stack      each one's modules around those of the one below it (Pfeiffer et al. 2020, MAD-X, arXiv:2005.00052: a
           language or domain below a task); a LoRA's update is added to what is below. Head and task are the top's.
average    weighted sum of the adapters' deltas, and of their heads (Wortsman et al. 2022, Model soups,
           arXiv:2203.05482; Chronopoulou et al. 2023, AdapterSoup, arXiv:2302.07027). Exact for LoRA of any rank;
           of other modules the numbers are averaged.
ensemble   each adapter for itself; the weighted mean of their logits is decoded.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, cast, get_args

import torch
from torch import Tensor, nn

from peftlab.errors import IntegrityError, suggest
from peftlab.runtime.adapter_template import LoadedAdapter
from peftlab.runtime.low_rank import LowRankUpdate, concat_updates
from peftlab.runtime.module_clone import replace_child, replace_tensors
from peftlab.runtime.routing import AdapterModule
from peftlab.runtime.token_embeddings import has_token_embeddings
from peftlab.store import AdapterVersion

CompositionMode = Literal["stack", "average", "ensemble"]


@dataclass(frozen=True)
class Composition:
    """Names of adapters, and how they become one; `weights` are those of `average` and `ensemble`, adding up to 1."""

    way: CompositionMode
    names: tuple[str, ...]
    weights: tuple[float, ...]


def composition(way: CompositionMode, names: Sequence[str], weights: Sequence[float] | None = None) -> Composition:
    """Check and complete what was asked for.

    Raises:
        ValueError: fewer than two names, no such way, or not as many weights as names.
    """
    if way not in get_args(CompositionMode):
        raise ValueError(f"no way '{way}' to put adapters together. {suggest(way, get_args(CompositionMode))}")
    if len(names) < 2:
        raise ValueError(f"a {way} needs at least two adapters, not {len(names)}")
    given = list(weights) if weights is not None else [1.0] * len(names)
    if len(given) != len(names) or sum(given) <= 0:
        raise ValueError(f"{len(names)} adapters need {len(names)} weights with a sum above 0, not {given}")
    if way == "stack" and weights is not None:
        raise ValueError("a stack has no weights")
    return Composition(way, tuple(names), tuple(weight / sum(given) for weight in given))


@dataclass(frozen=True)
class CompositeVersion:
    """A composition of certain versions."""

    way: CompositionMode
    parts: tuple[AdapterVersion, ...]
    weights: tuple[float, ...]

    def __str__(self) -> str:
        return f"the {self.way} of {', '.join(map(str, self.parts))}"


def parts_of(edition: AdapterVersion | CompositeVersion) -> tuple[AdapterVersion, ...]:
    """The versions that are in it."""
    return edition.parts if isinstance(edition, CompositeVersion) else (edition,)


def is_ensemble(edition: AdapterVersion | CompositeVersion) -> TypeGuard[CompositeVersion]:
    """Whether its parts are asked one by one."""
    return isinstance(edition, CompositeVersion) and edition.way == "ensemble"


def composed(edition: CompositeVersion, parts: Sequence[LoadedAdapter]) -> LoadedAdapter:
    """One adapter that answers as `parts` do together.

    Raises:
        IntegrityError: they cannot be put together so.
    """
    if edition.way == "ensemble":
        raise ValueError("the parts of an ensemble are asked one by one")
    if alone := [str(part.adapter) for part in parts if not part.routed]:
        raise IntegrityError(f"{edition} cannot be made: {', '.join(alone)} changes the base as a whole.")
    top = parts[-1]
    if edition.way == "stack":
        if rows := [str(part.adapter) for part in parts if has_token_embeddings(part.model)]:
            raise IntegrityError(f"{edition} cannot be made: {', '.join(rows)} has a head of its own for some tokens.")
        own = {name: _stacked(edition, owns) for name, owns in _by_module(edition, parts)}
        return LoadedAdapter(top.adapter, top.task, own, top.model, routed=True)
    check_same_outputs(edition, parts)
    own = {name: _averaged(edition, owns) for name, owns in _by_module(edition, parts)}
    model = cast(Any, _mean(edition, [part.model for part in parts]))
    return LoadedAdapter(top.adapter, top.task, own, model, routed=True)


def mean_logits(edition: CompositeVersion, logits: Sequence[Tensor]) -> Tensor:
    """Weighted mean of what the parts of an ensemble give for one feature."""
    return cast(Tensor, sum(weight * one for weight, one in zip(edition.weights, logits, strict=True)))


def check_same_outputs(edition: CompositeVersion, parts: Sequence[LoadedAdapter]) -> None:
    """Refuse adapters whose logits do not mean the same.

    Raises:
        IntegrityError: they are of different tasks or labels.
    """
    first = parts[0]
    for part in parts[1:]:
        if (part.task.type, part.task.head_labels) != (first.task.type, first.task.head_labels):
            raise IntegrityError(
                f"{edition} cannot be made: {first.adapter} ({first.task.type}) has the labels "
                f"{', '.join(first.task.head_labels)}; {part.adapter} ({part.task.type}) has "
                f"{', '.join(part.task.head_labels)}."
            )
    if is_ensemble(edition) and not first.task.head_labels:
        what = "a text cannot go on by several adapters" if first.task.writes else "a vocabulary is not averaged"
        raise IntegrityError(f"{edition} cannot be made: {what}. Take an average.")


def _by_module(
    edition: CompositeVersion, parts: Sequence[LoadedAdapter]
) -> Iterator[tuple[str, list[AdapterModule | None]]]:
    """What each part has, by module of the base.

    Raises:
        IntegrityError: one has something inside of what another has as a whole.
    """
    names = list(dict.fromkeys(name for part in parts for name in part.own))
    inside = next((name for name in names if any(name.startswith(f"{other}.") for other in names)), None)
    if inside:
        raise IntegrityError(f"{edition} cannot be made: one changes '{inside}', another the whole module around it.")
    for name in names:
        yield name, [part.own.get(name) for part in parts]


def _stacked(edition: CompositeVersion, owns: Sequence[AdapterModule | None]) -> AdapterModule:
    below, *above = [own for own in owns if own is not None]
    for own in above:
        below = _upon(edition, own, below)
    return below


def _upon(edition: CompositeVersion, own: AdapterModule, below: AdapterModule) -> AdapterModule:
    if isinstance(own, LowRankUpdate):
        return concat_updates([own, below]) if isinstance(below, LowRankUpdate) else _Updated(below, own)
    if "base_layer" not in own._modules:
        raise IntegrityError(
            f"{edition} cannot be made: the upper one does not build on what is below, but replaces it."
        )
    return replace_child(own, "base_layer", _Updated(None, below) if isinstance(below, LowRankUpdate) else below)


class _Updated(nn.Module):
    """A module with a LoRA's update; the base's own where there is no other."""

    def __init__(self, below: nn.Module | None, update: LowRankUpdate) -> None:
        super().__init__()
        self.below = below if below is not None else update.bare
        self.update = update

    def __getattr__(self, name: str) -> Any:
        """What is asked of the module, such as its weight's dtype."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("below"), name)

    def forward(self, x: Tensor) -> Tensor:
        """below(x) + B A x."""
        return cast(Tensor, self.below(x)) + self.update.of(x)


def _averaged(edition: CompositeVersion, owns: Sequence[AdapterModule | None]) -> AdapterModule:
    updates = [own for own in owns if isinstance(own, LowRankUpdate)]
    if len(updates) == sum(own is not None for own in owns):
        weights = [weight for weight, own in zip(edition.weights, owns, strict=True) if own is not None]
        return concat_updates(updates, weights)
    if len({type(own) for own in owns}) > 1:
        raise IntegrityError(
            f"{edition} cannot be made: the adapters are of different methods, or change other modules."
        )
    return _mean(edition, cast(Sequence[nn.Module], owns))


def _mean(edition: CompositeVersion, modules: Sequence[nn.Module]) -> nn.Module:
    """The first module with the weighted mean of all tensors that the modules do not share."""
    states = [module.state_dict(keep_vars=True) for module in modules]
    shapes: list[Mapping[str, Any]] = [{name: t.shape for name, t in state.items()} for state in states]
    if any(other != shapes[0] for other in shapes[1:]):
        raise IntegrityError(f"{edition} cannot be made: the adapters have tensors of different names or shapes.")
    apart = [name for name, tensor in states[0].items() if any(state[name] is not tensor for state in states[1:])]
    means = {name: _mean_of(edition, [state[name] for state in states]) for name in apart}
    return replace_tensors(modules[0], means)


def _mean_of(edition: CompositeVersion, tensors: Sequence[Tensor]) -> Tensor:
    if not tensors[0].is_floating_point():
        if all(torch.equal(tensors[0], other) for other in tensors[1:]):
            return tensors[0]
        raise IntegrityError(f"{edition} cannot be made: the adapters hold places in the base, which differ.")
    weighted = (weight * tensor.detach() for weight, tensor in zip(edition.weights, tensors, strict=True))
    return cast(Tensor, sum(weighted))

"""One forward pass of the base for rows of different adapters.

Each adapter has modules of its own in the place of some of the base's (`moulds.py`). The router has a tree of modules
on the base's weights, in which every module that some adapter changes is a `Routed`: it hands each row to the module of
its own adapter, and the rows of all others to the base's. So whatever changes single modules is routed, by whichever
method; where the modules are LoRA's, all rows share one product (`low_rank.py`). Rows of an adapter stand next to each
other, so that they are a slice.

What changes the whole base's input, such as virtual tokens, cannot be routed.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import groupby
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from peftlab.runtime.backbones import with_backbone
from peftlab.runtime.low_rank import LowRankUpdate, forward_with_updates
from peftlab.runtime.module_clone import clone_modules

Item = TypeVar("Item")
AdapterModule = nn.Module | LowRankUpdate
"""What an adapter has in the place of a module of the base."""
Segments = Sequence[tuple[Mapping[str, AdapterModule], slice]]
"""What the adapter of some rows has of its own, by module, and which rows these are: nothing for the bare base."""
_segments: ContextVar[Segments] = ContextVar("whose the rows are")


class RoutingError(Exception):
    """An adapter changes more than single modules."""


class Router:
    """The base, for rows of any adapters."""

    def __init__(self, backbone: PreTrainedModel, probe: Mapping[str, Tensor]) -> None:
        self.tree = clone_modules(backbone)
        self.options = {"use_cache": False} if hasattr(backbone.config, "use_cache") else {}
        self._by_row = _called_by_row(backbone, probe, self.options)

    def places(self, backbone: nn.Module, held: Collection[str] = ()) -> dict[str, nn.Module]:
        """What `backbone`, a tree on the same weights, has of its own, by the modules that are routed from now on.

        Modules that it holds as a whole, such as trained layers, are `held`, by their names in it.

        Raises:
            Unroutable: it changes the base as a whole.
        """
        if not _alike(self.tree, backbone):
            raise RoutingError
        places = self._places(self.tree, backbone, held)
        for parent, name, _ in places:
            _route(parent, name)
        return {name: own for _, name, own in places}

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        return next(self.tree.parameters()).device

    def bare(self, name: str) -> nn.Module:
        """The base's module in a place that is routed."""
        return cast(Routed, self.tree.get_submodule(name)).bare

    def _places(
        self, mine: nn.Module, theirs: nn.Module, held: Collection[str], path: str = ""
    ) -> list[tuple[nn.Module, str, nn.Module]]:
        """The smallest modules that hold what differs, and are given a row for each of the batch: parent, name, theirs.

        Raises:
            Unroutable: only the backbone as a whole is.
        """
        places: list[tuple[nn.Module, str, nn.Module]] = []
        for child, their in theirs._modules.items():
            if their is None:
                continue
            my, name = cast(nn.Module, mine._modules[child]), f"{path}{child}"
            bare = my.bare if isinstance(my, Routed) else my
            if name not in held and _alike(bare, their):
                try:
                    places += self._places(bare, their, held, f"{name}.")
                    continue
                except RoutingError:  # what differs inside is also used without rows
                    pass
            if name not in self._by_row:
                raise RoutingError
            places.append((mine, name, their))
        return places

    @contextmanager
    def routing_rows(self, rows: Sequence[Mapping[str, AdapterModule]]) -> Iterator[None]:
        """Inside the block, batches of `tree` are rows of adapters with these of their own, the very same ones standing
        together. A batch may have each row several times over, next to each other, as beams are."""
        with _routing(list(group_segments(rows))):
            yield

    def states(self, rows: Sequence[Mapping[str, AdapterModule]], inputs: Mapping[str, Tensor]) -> ModelOutput:
        """The backbone's output for rows as of `routing_rows`."""
        with self.routing_rows(rows):
            return cast(ModelOutput, self.tree(**inputs, **self.options))


class Routed(nn.Module):
    """In the place of a module of the base, which is `bare`, by its `name`."""

    def __init__(self, bare: nn.Module, name: str) -> None:
        super().__init__()
        self.bare = bare
        self.name = name

    def __getattr__(self, name: str) -> Any:
        """What the base asks its module for, such as a weight's dtype."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("bare"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the base's module, each row through its adapter's."""
        segments = _repeated(_segments.get(), args, kwargs)
        parts = [(own.get(self.name), part) for own, part in segments]
        if all(own is None for own, _ in parts):
            return self.bare(*args, **kwargs)
        if all(own is None or isinstance(own, LowRankUpdate) for own, _ in parts):
            return forward_with_updates(self.bare, args[0] if args else kwargs["input"], cast(Any, parts))
        if len(parts) == 1:
            return cast(nn.Module, parts[0][0])(*args, **kwargs)
        batch, given = segments[-1][1].stop, []
        for own, part in _joined_bare(parts):
            mine, named = _sliced(args, part, batch), _sliced(kwargs, part, batch)
            if args:
                mine = (slice_output(args[0], part), *mine[1:])
            with _routing(_within(segments, part)):
                given.append((self.bare if own is None else own)(*mine, **named))
        return _joined(given)


def _repeated(segments: Segments, args: Any, kwargs: Mapping[str, Any]) -> Segments:
    """Those of what a module is given, which may have each row several times over."""
    rows = segments[-1][1].stop
    given = _first_tensor(args, kwargs)
    times = 1 if given is None else len(given) // rows
    return segments if times == 1 else [(own, slice(times * at.start, times * at.stop)) for own, at in segments]


def _first_tensor(args: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def _joined_bare(parts: Sequence[tuple[AdapterModule | None, slice]]) -> Iterator[tuple[AdapterModule | None, slice]]:
    """The same, with rows of the bare module that are next to each other as one part."""
    for bare, group in groupby(parts, lambda part: part[0] is None):
        if bare:
            several = list(group)
            yield None, slice(several[0][1].start, several[-1][1].stop)
        else:
            yield from group


def _within(segments: Segments, part: slice) -> Segments:
    """Those of the rows in `part`, counted from its first."""
    inside = [(own, rows) for own, rows in segments if part.start <= rows.start < part.stop]
    return [(own, slice(rows.start - part.start, rows.stop - part.start)) for own, rows in inside]


def group_segments(items: Iterable[Item]) -> Iterator[tuple[Item, slice]]:
    """Each object, and the places where it stands, next to each other."""
    start = 0
    for _, group in groupby(items, id):
        same = list(group)
        yield same[0], slice(start, start := start + len(same))


def apply_head(model: Any, states: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> Any:
    """What a Transformers model makes of `states`, which its backbone would have given."""
    return with_backbone(model, PrecomputedBackbone(states))(**inputs)


def to_float32(states: ModelOutput) -> ModelOutput:
    """For heads, which are as they were trained."""
    if all(value.dtype == torch.float32 for value in states.values() if isinstance(value, Tensor)):
        return states
    return type(states)(**{k: v.float() if isinstance(v, Tensor) else v for k, v in states.items()})


def slice_output(value: Any, part: slice) -> Any:
    """Some rows of the tensors of an output."""
    if isinstance(value, Tensor):
        return value[part]
    return type(value)(**{k: v[part] for k, v in value.items() if isinstance(v, Tensor)}) if value else value


class PrecomputedBackbone(nn.Module):
    """A backbone that has been run already."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What it gave."""
        return self.output


@contextmanager
def _routing(segments: Segments) -> Iterator[None]:
    before = _segments.set(segments)
    try:
        yield
    finally:
        _segments.reset(before)


def _called_by_row(backbone: PreTrainedModel, probe: Mapping[str, Tensor], options: Mapping[str, Any]) -> set[str]:
    """Names of the modules of which each call has as many rows as the batch: not DeBERTa's for relative positions."""
    rows = len(next(iter(probe.values())))
    calls: dict[str, list[bool]] = {}

    def note(name: str, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        given = _first_tensor(args, kwargs)
        calls.setdefault(name, []).append(given is not None and given.dim() > 1 and len(given) == rows)

    hooks = [
        module.register_forward_pre_hook(partial(note, name), with_kwargs=True)
        for name, module in backbone.named_modules()
    ]
    try:
        with torch.no_grad():
            backbone(**probe, **options)
    finally:
        for hook in hooks:
            hook.remove()
    return {name for name, rows in calls.items() if all(rows)}


def _route(parent: nn.Module, name: str) -> None:
    child = name.rpartition(".")[2]
    there = cast(nn.Module, parent._modules[child])
    if not isinstance(there, Routed):
        parent._modules[child] = Routed(there, name)


def _alike(bare: nn.Module, theirs: nn.Module) -> bool:
    """Whether two modules do the same with their children, and weights of their own are the very same."""
    if type(bare) is not type(theirs) or "forward" in vars(theirs):
        return False
    pairs = ((vars(bare)[kind], vars(theirs)[kind]) for kind in ("_parameters", "_buffers"))
    return all(one.keys() == other.keys() and all(one[k] is other[k] for k in one) for one, other in pairs)


def _sliced(values: Any, part: slice, batch: int) -> Any:
    """Those rows of whatever in `values` has rows; a matrix that happens to be as long as the batch has none."""
    if isinstance(values, Tensor):
        rowed = values.dim() > 0 and len(values) == batch and (values.dim() != 2 or not values.is_floating_point())
        return values[part] if rowed else values
    if isinstance(values, tuple | list):
        return type(values)(_sliced(value, part, batch) for value in values)
    return {k: _sliced(v, part, batch) for k, v in values.items()} if type(values) is dict else values


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    if isinstance(parts[0], ModelOutput):
        return type(parts[0])(**{name: _joined([part[name] for part in parts]) for name in parts[0]})
    if isinstance(parts[0], tuple | list):
        return type(parts[0])(_joined(part) for part in zip(*parts, strict=True))
    return parts[0]

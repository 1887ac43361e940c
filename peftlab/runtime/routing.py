"""One forward pass of the base for rows of different adapters.

Each adapter has a tree of modules of its own on the base's weights. The router has one more, in which every module that
some adapter changes is a `Routed`: it hands each row to the module of its own adapter, and the rows of all others to
the base's. So whatever changes single modules is routed, by whichever method; where the modules are LoRA's, the base's
product is done once for all rows, and each adapter's update added to its own in place. Rows come sorted by adapter,
so that an adapter's are a slice.

What changes the whole base's input, such as virtual tokens, cannot be routed.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import groupby
from typing import Any, TypeVar, cast

import torch
from peft.tuners import lora
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from peftlab.runtime.trees import own_tree, with_child

Item = TypeVar("Item")
Segment = tuple[nn.Module, slice]
Place = tuple[nn.Module, str, nn.Module]
"""A module, the name of its child, and what an adapter has there."""
_rows: ContextVar[Sequence[str]] = ContextVar("the adapter of each row")
PROBE = (3, 5)  # rows and tokens


class Unroutable(Exception):
    """An adapter changes more than single modules."""


class Router:
    """The backbones of several adapters in one; `names` are those that were added."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        self.tree = own_tree(backbone)
        self.names: set[str] = set()
        self.options = {"use_cache": False} if hasattr(backbone.config, "use_cache") else {}
        self._by_row = _called_by_row(backbone, self.options)

    def add(self, name: str, backbone: nn.Module, held: Collection[str] = ()) -> None:
        """Let rows of `name` go through what `backbone`, a tree on the same weights, has of its own.

        Modules that it holds as a whole, such as trained layers, are `held`, by their names in it.

        Raises:
            Unroutable: it changes the base as a whole.
        """
        if not _alike(self.tree, backbone):
            raise Unroutable(name)
        for parent, child, own in self._places(self.tree, backbone, held):
            _route(parent, child, name, own)
        self.names.add(name)

    def _places(self, mine: nn.Module, theirs: nn.Module, held: Collection[str], path: str = "") -> list[Place]:
        """The smallest modules that hold what differs, and are given a row for each of the batch.

        Raises:
            Unroutable: only the backbone as a whole is.
        """
        places: list[Place] = []
        for child, their in theirs._modules.items():
            if their is None:
                continue
            my, name = cast(nn.Module, mine._modules[child]), f"{path}{child}"
            bare = my.bare if isinstance(my, Routed) else my
            if name not in held and _alike(bare, their):
                try:
                    places += self._places(bare, their, held, f"{name}.")
                    continue
                except Unroutable:  # what differs inside is also used without rows
                    pass
            if name not in self._by_row:
                raise Unroutable(name)
            places.append((mine, child, their))
        return places

    def states(self, names: Sequence[str], inputs: Mapping[str, Tensor]) -> ModelOutput:
        """The backbone's output for rows of `names`, of which equal ones stand together."""
        with _routing(names):
            return cast(ModelOutput, self.tree(**inputs, **self.options))


class Routed(nn.Module):
    """In the place of a module of the base, which is `bare`; `own` are those of adapters."""

    def __init__(self, bare: nn.Module) -> None:
        super().__init__()
        self.bare = bare
        self.own: dict[str, nn.Module] = {}

    def __getattr__(self, name: str) -> Any:
        """What the base asks its module for, such as a weight's dtype."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("bare"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the base's module, each row through its adapter's."""
        rows = _rows.get()
        segments = list(self._segments(rows))
        if len(segments) == 1:
            return segments[0][0](*args, **kwargs)
        if all(module is self.bare or _is_plain_lora(module) for module, _ in segments):
            return _with_updates(self.bare(*args, **kwargs), args[0], [s for s in segments if s[0] is not self.bare])
        parts = []
        for module, part in segments:
            mine, named = _sliced(args, part, len(rows)), _sliced(kwargs, part, len(rows))
            with _routing(rows[part]):
                parts.append(module(part_of(args[0], part), *mine[1:], **named) if args else module(**named))
        return _joined(parts)

    def _segments(self, rows: Sequence[str]) -> Iterator[Segment]:
        """Modules and the rows that go through each, which are next to each other."""
        return runs(self.own.get(name, self.bare) for name in rows)


def runs(items: Iterable[Item]) -> Iterator[tuple[Item, slice]]:
    """Each item, and the places of its equals that stand together."""
    start = 0
    for item, group in groupby(items):
        yield item, slice(start, start := start + sum(1 for _ in group))


def head_output(model: Any, states: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> Any:
    """What a Transformers model makes of `states`, which its backbone would have given."""
    return with_child(model, model.base_model_prefix, _Handing(states))(**inputs)


def part_of(value: Any, part: slice) -> Any:
    """Some rows of the tensors of an output."""
    if isinstance(value, Tensor):
        return value[part]
    return type(value)(**{k: v[part] for k, v in value.items() if isinstance(v, Tensor)}) if value else value


class _Handing(nn.Module):
    """A backbone that has been run already."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What it gave."""
        return self.output


@contextmanager
def _routing(rows: Sequence[str]) -> Iterator[None]:
    before = _rows.set(rows)
    try:
        yield
    finally:
        _rows.reset(before)


def _called_by_row(backbone: PreTrainedModel, options: Mapping[str, Any]) -> set[str]:
    """Names of the modules of which each call has as many rows as the batch: not DeBERTa's for relative positions."""
    calls: dict[str, list[bool]] = {}

    def note(name: str, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        calls.setdefault(name, []).append(given is not None and given.dim() > 1 and len(given) == PROBE[0])

    hooks = [
        module.register_forward_pre_hook(partial(note, name), with_kwargs=True)
        for name, module in backbone.named_modules()
    ]
    try:
        tokens = torch.ones(PROBE, dtype=torch.long, device=backbone.device)
        with torch.no_grad():
            backbone(input_ids=tokens, attention_mask=tokens, **options)
    finally:
        for hook in hooks:
            hook.remove()
    return {name for name, rows in calls.items() if all(rows)}


def _route(parent: nn.Module, child: str, name: str, module: nn.Module) -> None:
    there = cast(nn.Module, parent._modules[child])
    routed = there if isinstance(there, Routed) else Routed(there)
    routed.own[name] = module
    parent._modules[child] = routed


def _alike(bare: nn.Module, theirs: nn.Module) -> bool:
    """Whether two modules do the same with their children, and weights of their own are the very same."""
    if type(bare) is not type(theirs) or "forward" in vars(theirs):
        return False
    pairs = ((vars(bare)[kind], vars(theirs)[kind]) for kind in ("_parameters", "_buffers"))
    return all(one.keys() == other.keys() and all(one[k] is other[k] for k in one) for one, other in pairs)


def _is_plain_lora(module: nn.Module) -> bool:
    if type(module).__name__ not in ("Linear", "Linear8bitLt", "Linear4bit") or not isinstance(module, lora.LoraLayer):
        return False
    name = module.active_adapters[0]
    return name not in module.lora_variant and not module.lora_bias[name]


def _with_updates(y: Tensor, x: Tensor, segments: Sequence[Segment]) -> Tensor:
    """`y` (batch, …, out), the base's product for `x` (batch, …, in), with each LoRA's update on its own rows."""
    for module, part in segments:
        layer: Any = module
        name = layer.active_adapters[0]
        down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
        inner = x[part].reshape(-1, x.shape[-1]).to(down.dtype) @ down.t()
        mine = y[part].view(-1, y.shape[-1])
        mine.addmm_(inner.to(y.dtype), up.t().to(y.dtype), alpha=layer.scaling[name])
    return y


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

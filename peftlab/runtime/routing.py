"""One forward pass of the base in which each row goes through the modules of its own adapter.

An adapter replaces some modules of the base by its own (`adapter_template.py`). The router holds a copy of the base's
module tree, on the same weights, in which every module that some adapter replaces is a `RoutedModule`: it sends each
row to the module of its adapter, and all other rows to the base's. So every method that changes single modules is
routed in the same way; if the modules are plain LoRAs, all rows share one product (`low_rank.py`). Rows of one
adapter are consecutive, so that they are a slice of the batch.

Methods that change the input of the whole base, such as virtual tokens, cannot be routed.
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

from peftlab.runtime.low_rank import LowRankUpdate, forward_with_updates
from peftlab.runtime.module_clone import ModuleWrapper, clone_modules

Item = TypeVar("Item")
AdapterModule = nn.Module | LowRankUpdate
"""An adapter's replacement for a module of the base."""
ModulesByName = Mapping[str, AdapterModule]
"""The modules of one adapter, by the name of the base's module that each replaces; empty for the base alone."""
Segments = Sequence[tuple[ModulesByName, slice]]
"""For each run of consecutive rows of one adapter: its modules, and the rows."""
_segments: ContextVar[Segments] = ContextVar("the adapters of the rows of the current batch")


class RoutingError(Exception):
    """An adapter changes more than single modules."""


class Router:
    """The base, for batches whose rows belong to any adapters; `probe` is a small batch with several rows."""

    def __init__(self, backbone: PreTrainedModel, probe: Mapping[str, Tensor]) -> None:
        self.tree = clone_modules(backbone)
        self.options = {"use_cache": False} if hasattr(backbone.config, "use_cache") else {}
        self._batched_modules = _find_batched_modules(backbone, probe, self.options)
        """The names of modules whose inputs all have the rows of the batch → which of their arguments do."""

    @property
    def device(self) -> torch.device:
        """The device of the base."""
        return next(self.tree.parameters()).device

    def base_module(self, name: str) -> nn.Module:
        """The base's own module inside the routed module `name`."""
        return cast(RoutedModule, self.tree.get_submodule(name)).base_layer

    def extract_modules(self, backbone: nn.Module, full_modules: Collection[str] = ()) -> dict[str, nn.Module]:
        """Find the modules of `backbone` that differ from the base's, and route the base's modules of these names.

        Args:
            backbone: A module tree on the same weights.
            full_modules: Names of modules that it replaces as a whole, such as trained layers.

        Raises:
            RoutingError: it changes more than single modules of the base.
        """
        if not _is_same_module(self.tree, backbone):
            raise RoutingError
        replacements = self._find_replacements(self.tree, backbone, full_modules)
        for parent, name, _ in replacements:
            _route(parent, name, self._batched_modules[name])
        return {name: module for _, name, module in replacements}

    def _find_replacements(
        self, base: nn.Module, other: nn.Module, full_modules: Collection[str], path: str = ""
    ) -> list[tuple[nn.Module, str, nn.Module]]:
        """List the smallest modules that contain a difference and whose inputs have one row for each row of the batch.

        Returns:
            For each: the parent in the base, the name, and the module in `other`.

        Raises:
            RoutingError: only the backbone as a whole is such a module.
        """
        replacements: list[tuple[nn.Module, str, nn.Module]] = []
        for child_name, other_child in other._modules.items():
            if other_child is None:
                continue
            base_child, name = cast(nn.Module, base._modules[child_name]), f"{path}{child_name}"
            base_child = base_child.base_layer if isinstance(base_child, RoutedModule) else base_child
            if name not in full_modules and _is_same_module(base_child, other_child):
                try:
                    replacements += self._find_replacements(base_child, other_child, full_modules, f"{name}.")
                    continue
                except RoutingError:  # a module inside is also called with inputs without rows
                    pass
            if name not in self._batched_modules:
                raise RoutingError
            replacements.append((base, name, other_child))
        return replacements

    @contextmanager
    def routing_rows(self, rows: Sequence[ModulesByName]) -> Iterator[None]:
        """Inside the block, `tree` sends row i of a batch through the modules `rows[i]`.

        Rows of one adapter are the same object and consecutive. A batch may repeat each row next to itself, as beam
        search does.
        """
        with _using_segments(list(group_segments(rows))):
            yield

    def forward(self, rows: Sequence[ModulesByName], inputs: Mapping[str, Tensor]) -> ModelOutput:
        """Compute the backbone's output for the rows of a batch, from its arguments; see `routing_rows`."""
        with self.routing_rows(rows):
            return cast(ModelOutput, self.tree(**inputs, **self.options))


class RoutedModule(ModuleWrapper):
    """The base's module of this `name`, where each row of a batch goes through its own adapter's module."""

    def __init__(self, base_layer: nn.Module, name: str, row_arguments: Collection[str] = ()) -> None:
        super().__init__(base_layer)
        self.name = name
        self.row_arguments = row_arguments

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the module's output, each row with the module of its adapter."""
        segments = _repeat_segments(_segments.get(), args, kwargs)
        parts = [(modules.get(self.name), part) for modules, part in segments]
        if all(module is None for module, _ in parts):
            return self.base_layer(*args, **kwargs)
        if all(module is None or isinstance(module, LowRankUpdate) for module, _ in parts):
            return forward_with_updates(self.base_layer, args[0] if args else kwargs["input"], cast(Any, parts))
        if len(parts) == 1:
            return cast(nn.Module, parts[0][0])(*args, **kwargs)
        return self._forward_parts(segments, parts, args, kwargs)

    def _forward_parts(
        self, segments: Segments, parts: Sequence[tuple[AdapterModule | None, slice]], args: Any, kwargs: Any
    ) -> Any:
        batch_size, outputs = segments[-1][1].stop, []
        for module, part in _join_base_parts(parts):
            part_args = tuple(self._slice(str(i), value, part, batch_size) for i, value in enumerate(args))
            part_kwargs = {key: self._slice(key, value, part, batch_size) for key, value in kwargs.items()}
            with _using_segments(_segments_within(segments, part)):
                outputs.append((self.base_layer if module is None else module)(*part_args, **part_kwargs))
        return _concat_outputs(outputs)

    def _slice(self, key: str, value: Any, part: slice, batch_size: int) -> Any:
        """Select rows of an argument: what had the rows of the probe has those of the batch."""
        if key in self.row_arguments and isinstance(value, Tensor) and len(value) == batch_size:
            return value[part]
        return _slice_rows(value, part, batch_size)


def group_segments(items: Iterable[Item]) -> Iterator[tuple[Item, slice]]:
    """Yield each run of consecutive equal objects (by identity), and its slice."""
    start = 0
    for _, group in groupby(items, id):
        run = list(group)
        yield run[0], slice(start, start := start + len(run))


def _repeat_segments(segments: Segments, args: Any, kwargs: Mapping[str, Any]) -> Segments:
    """The segments of a module's input, which may have each row of the batch several times."""
    num_rows = segments[-1][1].stop
    tensor = _first_tensor(args, kwargs)
    times = 1 if tensor is None else len(tensor) // num_rows
    if times == 1:
        return segments
    return [(modules, slice(times * rows.start, times * rows.stop)) for modules, rows in segments]


def _first_tensor(args: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def _join_base_parts(
    parts: Sequence[tuple[AdapterModule | None, slice]],
) -> Iterator[tuple[AdapterModule | None, slice]]:
    """Yield the parts, with consecutive rows of the base's module as one part."""
    for is_base, group in groupby(parts, lambda part: part[0] is None):
        if is_base:
            base_parts = list(group)
            yield None, slice(base_parts[0][1].start, base_parts[-1][1].stop)
        else:
            yield from group


def _segments_within(segments: Segments, part: slice) -> Segments:
    """The segments of the rows in `part`, counted from its first row."""
    inside = [(modules, rows) for modules, rows in segments if part.start <= rows.start < part.stop]
    return [(modules, slice(rows.start - part.start, rows.stop - part.start)) for modules, rows in inside]


@contextmanager
def _using_segments(segments: Segments) -> Iterator[None]:
    token = _segments.set(segments)
    try:
        yield
    finally:
        _segments.reset(token)


def _find_batched_modules(
    backbone: PreTrainedModel, probe: Mapping[str, Tensor], options: Mapping[str, Any]
) -> dict[str, set[str]]:
    """Names of the modules whose inputs all have the rows of the batch, unlike DeBERTa's relative positions.

    Returns:
        For each: which arguments have them, by place or name. A matrix of another length may have as many rows as
        another batch by chance.
    """
    calls: dict[str, list[bool]] = {}
    arguments: dict[str, set[str]] = {}
    num_rows = len(next(iter(probe.values())))

    def record(name: str, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        tensor = _first_tensor(args, kwargs)
        has_rows = tensor is not None and tensor.dim() > 1 and len(tensor) == num_rows
        calls.setdefault(name, []).append(has_rows)
        named = {str(i): value for i, value in enumerate(args)} | kwargs
        found = {key for key, value in named.items() if isinstance(value, Tensor) and value.shape[:1] == (num_rows,)}
        arguments.setdefault(name, set()).update(found)

    hooks = [
        module.register_forward_pre_hook(partial(record, name), with_kwargs=True)
        for name, module in backbone.named_modules()
    ]
    try:
        with torch.no_grad():
            backbone(**probe, **options)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: arguments[name] for name, rows in calls.items() if all(rows)}


def _route(parent: nn.Module, name: str, row_arguments: Collection[str]) -> None:
    child_name = name.rpartition(".")[2]
    child = cast(nn.Module, parent._modules[child_name])
    if not isinstance(child, RoutedModule):
        parent._modules[child_name] = RoutedModule(child, name, row_arguments)


def _is_same_module(base: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have the same forward and the very same tensors, apart from their children."""
    if type(base) is not type(other) or "forward" in vars(other):
        return False
    pairs = ((vars(base)[kind], vars(other)[kind]) for kind in ("_parameters", "_buffers"))
    return all(left.keys() == right.keys() and all(left[k] is right[k] for k in left) for left, right in pairs)


def _slice_rows(values: Any, part: slice, batch_size: int) -> Any:
    """Select rows of all tensors in `values` that have rows; a float matrix as long as the batch is not one of them."""
    if isinstance(values, Tensor):
        is_matrix = values.dim() == 2 and values.is_floating_point()
        has_rows = values.dim() > 0 and len(values) == batch_size and not is_matrix
        return values[part] if has_rows else values
    if isinstance(values, tuple | list):
        return type(values)(_slice_rows(value, part, batch_size) for value in values)
    return {k: _slice_rows(v, part, batch_size) for k, v in values.items()} if type(values) is dict else values


def _concat_outputs(outputs: Sequence[Any]) -> Any:
    if isinstance(outputs[0], Tensor):
        return torch.cat(list(outputs))
    if isinstance(outputs[0], ModelOutput):
        return type(outputs[0])(**{name: _concat_outputs([output[name] for output in outputs]) for name in outputs[0]})
    if isinstance(outputs[0], tuple | list):
        return type(outputs[0])(_concat_outputs(values) for values in zip(*outputs, strict=True))
    return outputs[0]

"""LoRA for rows of different adapters: compute the base's product and all updates with little memory traffic.

A segment is a run of consecutive rows of one adapter. On a CPU, memory traffic takes more time in updates than
multiplication does (decision 0020), so there are two forms, and the cheaper one is used:

    long segments    x (W + BA)ᵀ: the sum is computed once per batch, then the rows take no more time than without LoRA
    short segments   b + (A xᵀ)ᵀ Bᵀ, then + x Wᵀ: bias and update are written first, and the base's product is added

A quantized base computes its own product; updates are added to its output.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import groupby
from typing import Any, NamedTuple, cast

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

Segment = tuple["LowRankUpdate | None", slice]
"""An update, or None for the base without an adapter, and the rows that it applies to."""
Stack = tuple[Tensor, Tensor]
_stacks: ContextVar[dict[tuple[tuple[int, int], ...], Stack] | None] = ContextVar("cached stacks", default=None)
MERGE_COST = 4  # cost of an element of W + BA, in elements of an update (measured at 384 × 384 and 384 × 1536)


class LowRankUpdate:
    """The update that a LoRA adds to one Linear of the base.

    `down` is A (r, in), `up` is scaled Bᵀ (r, out). Calling it computes the adapted Linear.
    """

    def __init__(self, base_layer: nn.Module, down: Tensor, up: Tensor, scaling: float) -> None:
        weight = cast(Tensor, base_layer.weight)
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        self.base_layer = base_layer
        self.down = down.to(weight.device, dtype)
        self.up = (up * scaling).t().to(weight.device, dtype).contiguous()
        self.merged_weight: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the adapted Linear: x (batch, …, in) → (batch, …, out)."""
        return forward_with_updates(self.base_layer, x, [(self, slice(0, len(x)))])

    def delta(self, x: Tensor) -> Tensor:
        """Compute the update alone: B A x (batch, …, out)."""
        return (x.to(self.down.dtype) @ self.down.t() @ self.up).to(x.dtype)

    @property
    def num_bytes(self) -> int:
        """Memory that it takes in addition to the base."""
        return sum(tensor.nbytes for tensor in (self.down, self.up, self.merged_weight) if tensor is not None)

    def merge(self) -> None:
        """Keep W + BA, so that it is not computed for every batch; W itself does not change."""
        if isinstance(self.base_layer, nn.Linear) and _is_dense(self.base_layer):
            self.merged_weight = self.merge_into(self.base_layer.weight)

    def unmerge(self) -> None:
        """Free the memory that `merge` took."""
        self.merged_weight = None

    def merge_into(self, weight: Tensor) -> Tensor:
        """Return W + BA for `weight` W (out, in)."""
        merged = self.merged_weight  # read once: another thread may unmerge it
        return merged if merged is not None else torch.addmm(weight, self.up.t(), self.down)


def _is_dense(base_layer: nn.Module) -> bool:
    """Whether its forward is a plain matrix product, so that it can be computed here instead."""
    return type(base_layer) is nn.Linear


def concat_updates(updates: Sequence[LowRankUpdate], weights: Sequence[float] | None = None) -> LowRankUpdate:
    """Sum updates of one Linear, each times its weight; the rank of the result is the sum of their ranks."""
    scales = weights or [1.0] * len(updates)
    up = torch.cat([update.up * scale for update, scale in zip(updates, scales, strict=True)])
    return LowRankUpdate(updates[0].base_layer, torch.cat([update.down for update in updates]), up.t(), 1.0)


class PlainLora(NamedTuple):
    """The name and scaling of an adapter in a PEFT layer."""

    adapter: str
    scaling: float


def plain_lora(module: nn.Module) -> PlainLora | None:
    """The LoRA in a PEFT layer if the layer computes W x + scaling · B A x and nothing else, otherwise None."""
    if type(module).__name__ not in ("Linear", "Linear8bitLt", "Linear4bit") or not isinstance(module, lora.LoraLayer):
        return None
    layer: Any = module
    name = layer.active_adapters[0]
    if name in layer.lora_variant or layer.lora_bias[name]:
        return None
    return PlainLora(name, layer.scaling[name])


def forward_with_updates(base_layer: nn.Module, x: Tensor, segments: Sequence[Segment]) -> Tensor:
    """Apply `base_layer` to x (batch, …, in), and each update to its own rows → (batch, …, out).

    `segments` cover the batch in order.
    """
    rows = x.reshape(len(x), -1, x.shape[-1])
    if not isinstance(base_layer, nn.Linear) or not _is_dense(base_layer) or base_layer.weight.dtype != x.dtype:
        return _add_updates(base_layer(x), rows, segments)
    y = rows.new_empty(*rows.shape[:2], base_layer.out_features)
    for is_long, group in _group_by_length(segments, rows.shape[1], base_layer.weight.shape):
        part = slice(group[0][1].start, group[-1][1].stop)
        inputs, out = rows[part].flatten(0, 1), y[part].flatten(0, 1)
        if is_long:
            update = group[0][0]
            weight = base_layer.weight if update is None else update.merge_into(base_layer.weight)
            _linear(inputs, weight, base_layer.bias, out)
        else:
            _bias_and_updates(rows[part], cast(Any, group), base_layer.bias, y[part])
            out.addmm_(inputs, base_layer.weight.t())
    return y.view(*x.shape[:-1], -1)


def _group_by_length(
    segments: Sequence[Segment], num_tokens: int, shape: Sequence[int]
) -> Iterator[tuple[bool, list[Segment]]]:
    """Yield each long segment by itself, and the short ones between them together."""
    for is_long, group in groupby(segments, lambda segment: _is_long(segment, num_tokens, shape)):
        if is_long:
            yield from ((True, [segment]) for segment in group)
        else:
            yield False, list(group)


def _is_long(segment: Segment, num_tokens: int, shape: Sequence[int]) -> bool:
    """Whether computing W + BA, `in` × `out` elements, is cheaper than updating `in` + `out` elements per token."""
    update, rows = segment
    count = (rows.stop - rows.start) * num_tokens
    if update is None or update.merged_weight is not None:
        return True
    if update.down.dtype != torch.float32:  # W + BA would be rounded like W, and the small BA would be lost
        return False
    return count * sum(shape) >= MERGE_COST * shape[0] * shape[1]


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if bias is None:
        torch.mm(inputs, weight.t(), out=out)
    else:
        torch.addmm(bias, inputs, weight.t(), out=out)


def _bias_and_updates(
    rows: Tensor, segments: Sequence[tuple[LowRankUpdate, slice]], bias: Tensor | None, out: Tensor
) -> None:
    """Write bias + update of rows (batch, tokens, in) to `out` (batch, tokens, out); both start at `segments[0]`."""
    downs, ups = _get_stack(segments)
    x, y = rows.reshape(len(downs), -1, rows.shape[-1]), out.view(len(downs), -1, out.shape[-1])
    inner = torch.bmm(downs, x.transpose(1, 2)).transpose(1, 2)  # two to four times faster than x Aᵀ (decision 0020)
    if bias is None:
        torch.bmm(inner, ups, out=y)
    else:
        torch.baddbmm(bias, inner, ups, out=y)


@contextmanager
def cached_stacks() -> Iterator[None]:
    """Inside the block, stack the tensors of the same segments only once; for repeated passes over the same rows."""
    token = _stacks.set({})
    try:
        yield
    finally:
        _stacks.reset(token)


def _get_stack(segments: Sequence[tuple[LowRankUpdate, slice]]) -> Stack:
    """`down` (n, r, in) and `up` (n, r, out): n is the number of segments if they have equal lengths, else of rows."""
    cache = _stacks.get()
    if cache is None:
        return _stack(segments)
    key = tuple((id(update), rows.stop - rows.start) for update, rows in segments)
    if key not in cache:
        cache[key] = _stack(segments)
    return cache[key]


def _stack(segments: Sequence[tuple[LowRankUpdate, slice]]) -> Stack:
    lengths = [rows.stop - rows.start for _, rows in segments]
    repeats = [1] * len(segments) if len(set(lengths)) == 1 else lengths
    updates = [update for (update, _), times in zip(segments, repeats, strict=True) for _ in range(times)]
    downs, ups = [update.down for update in updates], [update.up for update in updates]
    if len({len(down) for down in downs}) == 1:
        return torch.stack(downs), torch.stack(ups)
    return pad_sequence(downs, batch_first=True), pad_sequence(ups, batch_first=True)


def _add_updates(y: Tensor, rows: Tensor, segments: Sequence[Segment]) -> Tensor:
    """Add updates to `y` (batch, …, out), the output of a quantized base."""
    y = y.contiguous()
    for update, part in segments:
        if update is not None:
            inner = rows[part].flatten(0, 1).to(update.down.dtype) @ update.down.t()
            y[part].view(-1, y.shape[-1]).addmm_(inner.to(y.dtype), update.up.to(y.dtype))
    return y

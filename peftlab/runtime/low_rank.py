"""LoRA for rows of different adapters: the base's product and all updates in as few passes over memory as can be.

A segment is what one adapter does to rows that stand together. On a CPU the updates cost what they read and write, not
what they multiply (decision 0020), so there are two forms, each cheapest where it is used:

    long segments    x (W + BA)ᵀ: the sum is made for this batch, then the rows cost what the base costs
    short segments   b + (A xᵀ)ᵀ Bᵀ, then + x Wᵀ: the product begins with bias and update where it began with the bias

A base that is quantized keeps its own product, and updates are added to what it gives.
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

Part = tuple["LowRankUpdate | None", slice]
"""An update, or none for the bare base, and the rows that it is for."""
Stack = tuple[Tensor, Tensor]
_kept: ContextVar[dict[tuple[tuple[int, int], ...], Stack] | None] = ContextVar("stacks of this block", default=None)
MADE = 4  # what a number of W + BA costs, in numbers of an update (measured at 384 × 384 and 384 × 1536)


class LowRankUpdate:
    """What a LoRA adds to one Linear of the base.

    `down` is A (r, in), `up` scaled Bᵀ (r, out). Called, it is the adapted Linear.
    """

    def __init__(self, bare: nn.Module, down: Tensor, up: Tensor, scaling: float) -> None:
        weight = cast(Tensor, bare.weight)
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        self.bare = bare
        self.down = down.to(weight.device, dtype)
        self.up = (up * scaling).t().to(weight.device, dtype).contiguous()
        self.merged_weight: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """x (batch, …, in) → (batch, …, out)."""
        return forward_with_updates(self.bare, x, [(self, slice(0, len(x)))])

    def of(self, x: Tensor) -> Tensor:
        """B A x (batch, …, out) alone."""
        return (x.to(self.down.dtype) @ self.down.t() @ self.up).to(x.dtype)

    @property
    def bytes(self) -> int:
        """The memory it takes beside the base."""
        return sum(held.nbytes for held in (self.down, self.up, self.merged_weight) if held is not None)

    def merge(self) -> None:
        """Keep W + BA, which is then not made anew for every batch; W itself is never touched."""
        if isinstance(self.bare, nn.Linear) and _is_dense(self.bare):
            self.merged_weight = self.adapted(self.bare.weight)

    def unmerge(self) -> None:
        """Give that memory back."""
        self.merged_weight = None

    def adapted(self, weight: Tensor) -> Tensor:
        """`weight`, which is W (out, in), + BA."""
        merged_weight = self.merged_weight  # looked at once: another thread may unfold it
        return merged_weight if merged_weight is not None else torch.addmm(weight, self.up.t(), self.down)


def _is_dense(bare: nn.Module) -> bool:
    """Whether its product is plain enough to be left to us."""
    return type(bare) is nn.Linear


def concat_updates(updates: Sequence[LowRankUpdate], weights: Sequence[float] | None = None) -> LowRankUpdate:
    """The sum of updates of one Linear, each times its weight: of the rank of all together."""
    scales = weights or [1.0] * len(updates)
    up = torch.cat([update.up * scale for update, scale in zip(updates, scales, strict=True)])
    return LowRankUpdate(updates[0].bare, torch.cat([update.down for update in updates]), up.t(), 1.0)


class PlainLora(NamedTuple):
    """What PEFT's layer says of an adapter in it."""

    adapter: str
    scaling: float


def plain_lora(module: nn.Module) -> PlainLora | None:
    """A LoRA in one of PEFT's layers that does nothing but W x + scaling · B A x."""
    if type(module).__name__ not in ("Linear", "Linear8bitLt", "Linear4bit") or not isinstance(module, lora.LoraLayer):
        return None
    layer: Any = module
    name = layer.active_adapters[0]
    if name in layer.lora_variant or layer.lora_bias[name]:
        return None
    return PlainLora(name, layer.scaling[name])


def forward_with_updates(bare: nn.Module, x: Tensor, parts: Sequence[Part]) -> Tensor:
    """x (batch, …, in) through `bare`, with each update on its own rows → (batch, …, out).

    `parts` cover the batch in order.
    """
    rows = x.reshape(len(x), -1, x.shape[-1])
    if not isinstance(bare, nn.Linear) or not _is_dense(bare) or bare.weight.dtype != x.dtype:
        return _added(bare(x), rows, [part for part in parts if part[0] is not None])
    y = rows.new_empty(*rows.shape[:2], bare.out_features)
    for long, group in _groups(parts, rows.shape[1], bare.weight.shape):
        part = slice(group[0][1].start, group[-1][1].stop)
        mine, into = rows[part].flatten(0, 1), y[part].flatten(0, 1)
        if long:
            update = group[0][0]
            _product(mine, bare.weight if update is None else update.adapted(bare.weight), bare.bias, into)
        else:
            _updates(rows[part], cast(Any, group), bare.bias, y[part])
            into.addmm_(mine, bare.weight.t())
    return y.view(*x.shape[:-1], -1)


def _groups(parts: Sequence[Part], tokens: int, shape: Sequence[int]) -> Iterator[tuple[bool, list[Part]]]:
    """Long segments by themselves, and the short ones between them together."""
    for long, group in groupby(parts, lambda part: _is_long(part, tokens, shape)):
        if long:
            yield from ((True, [part]) for part in group)
        else:
            yield False, list(group)


def _is_long(part: Part, tokens: int, shape: Sequence[int]) -> bool:
    """Whether making W + BA, `in` × `out` numbers, is less work than updating `in` + `out` numbers for each token."""
    update, rows = part
    count = (rows.stop - rows.start) * tokens
    if update is None or update.merged_weight is not None:
        return True
    if update.down.dtype != torch.float32:  # W + BA would be rounded as coarsely as W, and the small BA be lost
        return False
    return count * sum(shape) >= MADE * shape[0] * shape[1]


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None, into: Tensor) -> None:
    if bias is None:
        torch.mm(rows, weight.t(), out=into)
    else:
        torch.addmm(bias, rows, weight.t(), out=into)


def _updates(rows: Tensor, parts: Sequence[tuple[LowRankUpdate, slice]], bias: Tensor | None, into: Tensor) -> None:
    """Bias and updates of rows (batch, tokens, in), whose first is that of `parts`, `into` (batch, tokens, out)."""
    downs, ups = _stacked(parts)
    segments, updated = rows.reshape(len(downs), -1, rows.shape[-1]), into.view(len(downs), -1, into.shape[-1])
    inner = torch.bmm(downs, segments.transpose(1, 2)).transpose(1, 2)  # so, and not as x Aᵀ: two to four times faster
    if bias is None:
        torch.bmm(inner, ups, out=updated)
    else:
        torch.baddbmm(bias, inner, ups, out=updated)


@contextmanager
def cached_stacks() -> Iterator[None]:
    """Inside the block, what segments of the same updates need is put together once: for passes over the same rows."""
    before = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(before)


def _stacked(parts: Sequence[tuple[LowRankUpdate, slice]]) -> Stack:
    """`down` (n, r, in) and `up` (n, r, out) of n segments if they are of one length, or else of n rows."""
    kept = _kept.get()
    if kept is None:
        return _stack(parts)
    key = tuple((id(update), rows.stop - rows.start) for update, rows in parts)
    if key not in kept:
        kept[key] = _stack(parts)
    return kept[key]


def _stack(parts: Sequence[tuple[LowRankUpdate, slice]]) -> Stack:
    counts = [rows.stop - rows.start for _, rows in parts]
    repeated = [1] * len(parts) if len(set(counts)) == 1 else counts
    updates = [update for (update, _), times in zip(parts, repeated, strict=True) for _ in range(times)]
    downs, ups = [update.down for update in updates], [update.up for update in updates]
    if len({len(down) for down in downs}) == 1:
        return torch.stack(downs), torch.stack(ups)
    return pad_sequence(downs, batch_first=True), pad_sequence(ups, batch_first=True)


def _added(y: Tensor, rows: Tensor, parts: Sequence[Part]) -> Tensor:
    """`y` (batch, …, out), a quantized base's own product, with the updates."""
    y = y.contiguous()
    for update, part in parts:
        if update is not None:
            inner = rows[part].flatten(0, 1).to(update.down.dtype) @ update.down.t()
            mine = y[part].view(-1, y.shape[-1])
            mine.addmm_(inner.to(y.dtype), update.up.to(y.dtype))
    return y

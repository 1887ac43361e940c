"""Dropout masks at the price of one random number: windows into long random rows, at random places.

Drawing a mask number by number takes a CPU as long as a LoRA step itself. Here a row of independent draws is made once,
and each mask is a stretch of it that begins at a random place: within a mask all draws are independent, each kept with
probability 1 - p and scaled by 1 / (1 - p), as in Srivastava et al. (2014). The places come from torch's own generator,
so that seeding and resuming work as ever.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

PLACES = 2**20
CHUNK = 2**20


class DropoutMasks:
    """Random rows by probability and dtype; what stands where in them depends on nothing but the seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rows: dict[tuple[float, torch.dtype], Tensor] = {}

    def draw(self, like: Tensor, p: float) -> Tensor:
        """A mask in shape and dtype of `like`: 0 with probability p, else 1 / (1 - p)."""
        place = int(torch.randint(PLACES, ()))
        row = self._row(PLACES + like.numel(), p, like.dtype)
        return row[place : place + like.numel()].view(like.shape)

    def _row(self, length: int, p: float, dtype: torch.dtype) -> Tensor:
        row = self.rows.get((p, dtype), torch.empty(0, dtype=dtype))
        if len(row) < length:
            chunks = range(len(row) // CHUNK, -(-length // CHUNK))
            row = self.rows[p, dtype] = torch.cat([row, *(self._chunk(i, p).to(dtype) for i in chunks)])
        return row

    def _chunk(self, i: int, p: float) -> Tensor:
        """The i-th stretch of a row, whatever was drawn before."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + i)
        return torch.empty(CHUNK).bernoulli_(1 - p, generator=generator).div_(1 - p)


class PrecomputedDropout(nn.Dropout):
    """torch's Dropout with masks from `Masks`; made by `fast_dropout`, never directly."""

    masks: DropoutMasks

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        mask = dropout_mask(self, x)
        return x if mask is None else x * mask


def dropout_mask(dropout: Any, x: Tensor) -> Tensor | None:
    """What `dropout`, a module, would multiply `x` with just now; None where it does nothing."""
    p = getattr(dropout, "p", 0.0)
    if not dropout.training or p == 0:
        return None
    if isinstance(dropout, PrecomputedDropout):
        return dropout.masks.draw(x, p)
    return nn.functional.dropout(torch.ones_like(x), p)


@contextmanager
def fast_dropout(model: nn.Module, seed: int) -> Iterator[DropoutMasks]:
    """Inside the block, every Dropout module of `model` draws cheap masks; gives where they come from."""
    masks = DropoutMasks(seed)
    modules: list[Any] = [module for module in model.modules() if type(module) is nn.Dropout]
    for module in modules:
        module.__class__, module.masks = PrecomputedDropout, masks
    try:
        yield masks
    finally:
        for module in modules:
            module.__class__ = nn.Dropout
            del module.masks

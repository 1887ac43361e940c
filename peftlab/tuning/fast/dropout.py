"""Dropout masks at the cost of one random number: slices of precomputed random rows, at random offsets.

Drawing a mask number by number takes a CPU as long as a whole LoRA step (decision 0011). Here a long row of independent
draws is made once, and each mask is a slice of it at a random offset: within a mask all draws are independent, each
kept with probability 1 - p and scaled by 1 / (1 - p), as in Srivastava et al. (2014). The offsets come from torch's own
generator, so that seeding and resuming work as usual.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

NUM_OFFSETS = 2**20
CHUNK = 2**20


class DropoutMasks:
    """Random rows by probability and dtype; their values depend only on the seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rows: dict[tuple[float, torch.dtype], Tensor] = {}

    def draw(self, like: Tensor, p: float) -> Tensor:
        """A mask with shape and dtype of `like`: 0 with probability p, else 1 / (1 - p)."""
        offset = int(torch.randint(NUM_OFFSETS, ()))
        row = self._row(NUM_OFFSETS + like.numel(), p, like.dtype)
        return row[offset : offset + like.numel()].view(like.shape)

    def _row(self, length: int, p: float, dtype: torch.dtype) -> Tensor:
        row = self.rows.get((p, dtype), torch.empty(0, dtype=dtype))
        if len(row) < length:
            chunks = range(len(row) // CHUNK, -(-length // CHUNK))
            row = self.rows[p, dtype] = torch.cat([row, *(self._chunk(i, p).to(dtype) for i in chunks)])
        return row

    def _chunk(self, i: int, p: float) -> Tensor:
        """Chunk `i` of a row, which does not depend on earlier draws."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + i)
        return torch.empty(CHUNK).bernoulli_(1 - p, generator=generator).div_(1 - p)


class PrecomputedDropout(nn.Dropout):
    """A Dropout module with masks from `masks`."""

    def __init__(self, original: nn.Dropout, masks: DropoutMasks) -> None:
        super().__init__(original.p)
        self.masks = masks
        self.training = original.training

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        mask = dropout_mask(self, x)
        return x if mask is None else x * mask


def dropout_mask(dropout: Any, x: Tensor) -> Tensor | None:
    """The mask by which the module `dropout` multiplies `x` in this call; None if it changes nothing."""
    p = getattr(dropout, "p", 0.0)
    if not dropout.training or p == 0:
        return None
    if isinstance(dropout, PrecomputedDropout):
        return dropout.masks.draw(x, p)
    return nn.functional.dropout(torch.ones_like(x), p)


@contextmanager
def fast_dropout(model: nn.Module, seed: int) -> Iterator[DropoutMasks]:
    """Inside the block, every Dropout module of `model` is replaced by one with precomputed masks."""
    masks = DropoutMasks(seed)
    replaced = {module: PrecomputedDropout(module, masks) for module in model.modules() if type(module) is nn.Dropout}
    _replace_children(model, replaced)
    try:
        yield masks
    finally:
        _replace_children(model, {module: original for original, module in replaced.items()})
        for original, module in replaced.items():
            original.train(module.training)


def _replace_children(model: nn.Module, replacements: dict[Any, Any]) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in replacements:
                setattr(parent, name, replacements[child])

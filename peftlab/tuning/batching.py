"""Training batches with about equal numbers of tokens, made of rows of similar length."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

BATCHES_PER_POOL = 100
MIN_POOLS = 4  # with one pool, a small set has the same batches in every epoch and scores lower (decision 0011)
MIN_BATCHES_PER_POOL = 3


class TokenBatches(Sampler[list[int]]):
    """As many batches per epoch as with `batch_size` rows each, but with equal numbers of tokens instead of rows.

    The rows are shuffled, divided into pools, sorted by length within each pool and split into batches, which are
    shuffled. The order depends only on seed and epoch, so that a run can resume. The number of batches is a multiple of
    `world_size · accumulation_steps`, so N processes match one process with N times the accumulation steps.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        *,
        accumulation_steps: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.float64)
        batches_per_step = accumulation_steps * world_size
        self.total = batches_per_step * max(1, math.ceil(len(lengths) / batch_size / batches_per_step))
        self.seed, self.epoch, self.rank, self.world_size = seed, 0, rank, world_size

    def __len__(self) -> int:
        return self.total // self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        rows = np.resize(random.permutation(len(self.lengths)), max(self.total, len(self.lengths)))
        batches = [batch for pool, num_batches in self._pools(rows) for batch in self._split(pool, num_batches)]
        yield from (batches[i].tolist() for i in random.permutation(self.total)[self.rank :: self.world_size])

    def set_epoch(self, epoch: int) -> None:
        """Trainer calls this at the start of each epoch."""
        self.epoch = epoch

    def _pools(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], int]]:
        """Pairs of a pool of rows and the number of batches to split it into."""
        num_pools = min(MIN_POOLS, self.total // MIN_BATCHES_PER_POOL)
        edges = np.linspace(0, self.total, 1 + max(1, num_pools, math.ceil(self.total / BATCHES_PER_POOL))).astype(int)
        row_edges = edges * len(rows) // self.total
        yield from zip(np.split(rows, row_edges[1:-1]), np.diff(edges).tolist(), strict=True)

    def _split(self, pool: NDArray[np.int64], num_batches: int) -> list[NDArray[np.int64]]:
        pool = pool[np.argsort(self.lengths[pool], kind="stable")]
        return np.split(pool, split_evenly(self.lengths[pool], num_batches))


def split_evenly(costs: NDArray[np.float64], num_parts: int) -> NDArray[np.int64]:
    """Where to split `costs` into consecutive parts of about equal sums: the start index of each part but the first.

    No part is empty if there are at least as many costs as parts: a cost above the mean share counts as one share.
    """
    for _ in range(50):  # the share converges, mostly in one or two rounds
        share = costs.sum() / num_parts
        if costs.max() <= share:
            middles = np.cumsum(costs) - costs / 2
            return np.searchsorted(middles, share * np.arange(1, num_parts))
        costs = np.minimum(costs, share)
    return np.arange(1, num_parts) * len(costs) // num_parts


class TokenLoader(DataLoader[Any]):
    """A data loader that passes the epoch on to its batches."""

    def __init__(self, dataset: Dataset[Any], batches: Sampler[list[int]], collate: Callable[[list[Any]], Any]) -> None:
        super().__init__(dataset, batch_sampler=batches, collate_fn=collate)

    def set_epoch(self, epoch: int) -> None:
        """Trainer calls this at the start of each epoch."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]

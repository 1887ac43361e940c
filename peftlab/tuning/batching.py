"""Training batches that hold about the same number of tokens, of rows that are about equally long."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

Numbers = NDArray[np.float64]
BATCHES_A_POOL = 100
FEWEST_POOLS = 4  # of one, a small set would have the same batches in every epoch, and learn less (decision 0011)
SMALLEST_POOL = 3


class TokenBatches(Sampler[list[int]]):
    """As many batches an epoch as there are of `batch_size` rows, but cut by tokens: many short rows, or few long ones.

    The rows are shuffled, dealt into pools, sorted by length within each pool, cut, and the batches shuffled. The order
    depends on nothing but seed and epoch, so that a run can resume. Each of `world` processes takes batches of its own,
    and a step sums up `together` of them; an epoch has a multiple of both, so that several processes learn what one
    learns whose steps sum up as many batches.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, *, together: int = 1, rank: int = 0, world: int = 1
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.float64)
        a_step = together * world
        self.total = a_step * max(1, math.ceil(len(lengths) / batch_size / a_step))
        self.seed, self.epoch, self.rank, self.world = seed, 0, rank, world

    def __len__(self) -> int:
        return self.total // self.world

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        rows = np.resize(random.permutation(len(self.lengths)), max(self.total, len(self.lengths)))
        batches = [batch for pool, parts in self._pools(rows) for batch in self._cut(pool, parts)]
        yield from (batches[i].tolist() for i in random.permutation(self.total)[self.rank :: self.world])

    def set_epoch(self, epoch: int) -> None:
        """Trainer calls this at the start of each epoch."""
        self.epoch = epoch

    def _pools(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], int]]:
        """Each pool of rows, with the number of batches to cut it into."""
        few = min(FEWEST_POOLS, self.total // SMALLEST_POOL)
        edges = np.linspace(0, self.total, 1 + max(1, few, math.ceil(self.total / BATCHES_A_POOL))).astype(int)
        cuts = edges * len(rows) // self.total
        yield from zip(np.split(rows, cuts[1:-1]), np.diff(edges).tolist(), strict=True)

    def _cut(self, pool: NDArray[np.int64], parts: int) -> list[NDArray[np.int64]]:
        pool = pool[np.argsort(self.lengths[pool], kind="stable")]
        return np.split(pool, split_evenly(self.lengths[pool], parts))


def split_evenly(costs: Numbers, parts: int) -> NDArray[np.int64]:
    """Where to cut a row of costs into `parts` runs of about equal sums: the begin of each run but the first.

    No run is empty, if there are as many costs as parts: what costs more than a fair share counts as one.
    """
    for _ in range(50):  # shares shrink towards a fixed point, mostly in one or two rounds
        share = costs.sum() / parts
        if costs.max() <= share:
            middles = np.cumsum(costs) - costs / 2
            return np.searchsorted(middles, share * np.arange(1, parts))
        costs = np.minimum(costs, share)
    return np.arange(1, parts) * len(costs) // parts


class TokenLoader(DataLoader[Any]):
    """A loader of `TokenBatches` that hands the epoch on to them."""

    def __init__(self, dataset: Dataset[Any], batches: TokenBatches, collate: Callable[[list[Any]], Any]) -> None:
        super().__init__(dataset, batch_sampler=batches, collate_fn=collate)

    def set_epoch(self, epoch: int) -> None:
        """Trainer calls this at the start of each epoch."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]

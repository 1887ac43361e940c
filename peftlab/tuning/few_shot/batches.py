"""Batches with several rows of each class, from which contrastive pairs are made: no list of all pairs is built."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

ROWS_PER_CLASS = 2


class ClassBatches(Sampler[list[int]]):
    """Batches of `batch_size` row numbers, with the same number of rows of each class that is in the batch.

    Classes and their rows are drawn in turn, so that all are drawn about equally often. A batch has two rows of as many
    classes as fit, or more rows of each class if there are few classes. A row is repeated if its class has no other
    one: dropout then makes two states of it. `anchors` are row numbers by class; they are added to each batch with rows
    of their class. The draw depends only on seed, epoch and rank, so that a run can resume.
    """

    def __init__(
        self,
        labels: Sequence[int],
        batch_size: int,
        seed: int,
        *,
        anchors: Sequence[int] = (),
        accumulation_steps: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.rows: dict[int, list[int]] = defaultdict(list)
        for row, label in enumerate(labels):
            self.rows[label].append(row)
        self.per_class = max(ROWS_PER_CLASS, batch_size // len(self.rows))
        self.classes_per_batch = max(1, min(len(self.rows), batch_size // self.per_class))
        batches_per_step = accumulation_steps * world_size
        steps = max(1, math.ceil(len(labels) / batch_size / batches_per_step))
        self.num_batches = steps * accumulation_steps
        self.anchors, self.seed, self.epoch, self.rank = anchors, seed, 0, rank

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch, self.rank))
        classes = _in_turn(sorted(self.rows), random)
        rows = {label: _in_turn(numbers, random) for label, numbers in self.rows.items()}
        waiting: list[int] = []
        for _ in range(self.num_batches):
            batch: list[int] = []
            for label in _distinct(classes, waiting, self.classes_per_batch):
                size = min(self.per_class, max(ROWS_PER_CLASS, len(self.rows[label])))
                batch += [next(rows[label]) for _ in range(size)]
                batch += self.anchors[label : label + 1]
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Trainer calls this at the start of each epoch."""
        self.epoch = epoch


def _in_turn(items: Sequence[int], random: np.random.Generator) -> Iterator[int]:
    """All items in random order, then again in another order, without end."""
    while True:
        yield from (items[i] for i in random.permutation(len(items)))


def _distinct(items: Iterator[int], waiting: list[int], size: int) -> list[int]:
    """Take `size` different items out of `waiting`, which is filled up from an endless iterator."""
    while len(set(waiting)) < size:
        waiting.append(next(items))
    chosen = list(dict.fromkeys(waiting))[:size]
    for item in chosen:
        waiting.remove(item)
    return chosen

"""Split validation and test rows off the training rows: at random, or such that every split has the labels."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from peftlab.data.rows import Row, Split
from peftlab.errors import ErrorCollector

RowLabels = Callable[[Row], Iterable[str]]
"""The labels of a row: one class, or several, or none."""
NO_LABEL = ""
"""Stands for the rows without labels, so that each split has its share of them."""


def split_off_fractions(
    splits: dict[str, Split],
    fractions: dict[str, float],
    seed: int,
    errors: ErrorCollector,
    labels_of: RowLabels | None = None,
) -> dict[str, Split]:
    """Split the given fractions off the training rows, by `seed`. Each split keeps the order of the rows.

    With `labels_of`, every split has about the same share of each label, and each label stays in the training rows.
    """
    if not fractions or not splits["train"].rows:
        return splits
    rows = splits["train"].rows
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    labels = [tuple(dict.fromkeys(labels_of(row))) or (NO_LABEL,) for row in rows] if labels_of else None
    new_splits, left = dict(splits), order
    for name, fraction in fractions.items():
        count = max(1, round(fraction * len(rows)))
        taken = set(left[:count] if labels is None else _stratified(labels, left, count))
        if not taken:
            errors.add(
                f"{fraction:.0%} of {len(rows)} training rows cannot be split off: each row has the only one of its "
                "labels.",
                key=f"data.{name}",
                hint="Add rows, or name a file.",
            )
        new_splits[name] = Split([rows[i] for i in sorted(taken)], f"{fraction:.0%} of the training rows, seed {seed}")
        left = [i for i in left if i not in taken]
    if not left:
        errors.add(f"the shares of {' and '.join(fractions)} leave no training rows.", key="data")
    new_splits["train"] = replace(splits["train"], rows=[rows[i] for i in sorted(left)])
    return new_splits


def _stratified(labels: Sequence[tuple[str, ...]], order: Sequence[int], count: int) -> list[int]:
    """Up to `count` of the row numbers in `order`, with a proportional share of each label; the others have them all.

    The rows are taken one by one, each for the label that lacks most. A label with a share of at least one row comes
    first until it has one, the rarest first (iterative stratification: Sechidis et al. 2011).
    """
    others = Counter(label for i in order for label in labels[i])
    share = {label: total * count / len(order) for label, total in others.items()}
    lacking = dict(share)
    candidates: dict[str, list[int]] = {label: [] for label in others}
    for i in reversed(order):
        for label in labels[i]:
            candidates[label].append(i)

    def urgency(label: str) -> tuple[bool, float]:
        is_first = lacking[label] == share[label] >= 1
        return is_first, -share[label] if is_first else lacking[label]

    taken: dict[int, None] = {}
    while candidates and len(taken) < count:
        label = max(candidates, key=urgency)
        if not candidates[label]:
            del candidates[label]
            continue
        row = candidates[label].pop()
        if row in taken or any(others[name] == 1 for name in labels[row]):
            continue
        taken[row] = None
        for name in labels[row]:
            others[name] -= 1
            lacking[name] -= 1
    return list(taken)


def stratified_folds(labels: Sequence[Iterable[str]], num_folds: int, seed: int) -> list[list[int]]:
    """Deal row numbers to `num_folds` folds, so that each has about the same share of each label.

    A row with several labels counts for the rarest of them. Each fold is sorted.
    """
    dealt = [i for group in _groups_by_rarest_label(labels, seed) for i in group]
    return [sorted(dealt[fold::num_folds]) for fold in range(num_folds)]


def stratified_sample(labels: Sequence[Iterable[str]], size: int, seed: int) -> list[int]:
    """At most `size` row numbers, sorted, with about the share of each label that it has in all rows."""
    if size >= len(labels):
        return list(range(len(labels)))
    draw = random.Random(seed)
    places: list[tuple[float, int]] = []
    for group in _groups_by_rarest_label(labels, seed):
        offset = draw.random()
        places += [((position + offset) / len(group), i) for position, i in enumerate(group)]
    return sorted(i for _, i in sorted(places)[:size])


def _groups_by_rarest_label(labels: Sequence[Iterable[str]], seed: int) -> list[list[int]]:
    """The row numbers in random order, grouped by the rarest label of each row."""
    names = [tuple(dict.fromkeys(row)) or (NO_LABEL,) for row in labels]
    counts = Counter(name for row in names for name in row)
    groups: dict[str, list[int]] = {}
    for i in random.Random(seed).sample(range(len(names)), len(names)):
        groups.setdefault(min(names[i], key=lambda name: (counts[name], name)), []).append(i)
    return [groups[name] for name in sorted(groups)]

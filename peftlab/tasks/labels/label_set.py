"""Labels that come from the training rows, or from the recipe, and are then fixed."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from peftlab.errors import ErrorCollector, suggest

NUMBERS_HINT = (
    "A number stands for a class only if task.labels lists the classes in their order, or the dataset has class names; "
    "else write names."
)


def fit_labels_from_examples(
    given: list[str],
    examples: Mapping[str, Sequence[Any]],
    labels_of: Callable[[Any], Iterable[str]],
    errors: ErrorCollector,
) -> list[str]:
    """The labels given in the recipe, or else those of the training examples in order (numbers by value).

    A label of any split that is not among them is a problem.
    """
    if not (given or examples["train"]):
        return []  # no training row could be read, which is an error already
    labels = given or sorted({label for example in examples["train"] for label in labels_of(example)}, key=_by_value)
    missing_in = "task.labels" if given else "the training rows"
    for split, rows in examples.items():
        reject_unknown_labels(labels, rows, labels_of, errors, split=split, missing_in=missing_in, key=f"data.{split}")
    return labels


def reject_unknown_labels(
    labels: Sequence[str],
    rows: Sequence[Any],
    labels_of: Callable[[Any], Iterable[str]],
    errors: ErrorCollector,
    *,
    split: str,
    missing_in: str,
    key: str = "",
) -> None:
    """Add a problem for each label of `rows` that is not among `labels`."""
    seen = Counter(label for example in rows for label in labels_of(example))
    for label in sorted(seen.keys() - set(labels), key=_by_value):
        where = next(row.where for row in rows if label in labels_of(row))
        errors.add(
            f"label '{label}' occurs in {split} ({seen[label]}×, first at {where}) but not in {missing_in}.",
            key=key,
            hint=NUMBERS_HINT
            if _is_number_among_names(label, labels)
            else suggest(label, labels, what="Available labels"),
        )


def _is_number_among_names(label: str, labels: Sequence[str]) -> bool:
    return label.isdecimal() and not any(name.isdecimal() for name in labels)


def _by_value(label: str) -> tuple[float, str]:
    """Numbers in their own order, then names by the alphabet."""
    try:
        number = float(label)
    except ValueError:
        number = math.inf
    return (number if math.isfinite(number) else math.inf), label

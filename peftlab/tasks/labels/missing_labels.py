"""Rows whose label means "no label": `-` in SNLI, `-1` in files with class numbers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from peftlab.data import Ledger
from peftlab.errors import ErrorCollector

MISSING_LABELS = ("-", "-1")
DROP_REASON = "without text or label (data.drop_blank)"
DROP_HINT = "data.drop_blank: true (or --drop-blank) leaves such rows out"


def find_missing_labels(
    labels: Sequence[str], examples: Mapping[str, Sequence[Any]], labels_of: Callable[[Any], Iterable[str]]
) -> set[str]:
    """Which of `-` and `-1` the examples have without being a class.

    They are classes if `labels`, those of the recipe or adapter, have them, or if fewer than two labels would be left,
    as in {-1, 1} and {+, -}.
    """
    seen = {label for split in examples.values() for example in split for label in labels_of(example)}
    missing = seen.intersection(MISSING_LABELS) - set(labels)
    return missing if labels or len(seen - missing) > 1 else set()


def leave_out_unlabelled(
    examples: Sequence[Any],
    missing: set[str],
    labels_of: Callable[[Any], Iterable[str]],
    ledger: Ledger,
    errors: ErrorCollector,
    *,
    drop: bool,
    key: str = "",
) -> list[Any]:
    """The examples that have a label; the others are counted if `drop`, and else are an error."""
    if not missing:
        return list(examples)
    left_out = [example for example in examples if missing.intersection(labels_of(example))]
    if left_out and not drop:
        found = " and ".join(f"'{label}'" for label in sorted(missing))
        message = f"label {found} means no label in many data sets ({len(left_out)} rows, first {left_out[0].where})."
        hint = f"{DROP_HINT}. If it is a class, list all classes: task.labels."
        errors.add(message, key=key, hint=hint)
    elif drop:
        for _ in left_out:
            ledger.drop(DROP_REASON)
    return [example for example in examples if not missing.intersection(labels_of(example))]

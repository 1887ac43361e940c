"""Warnings about what the splits of a run can show: few validation rows, and labels without rows."""

from collections import Counter
from collections.abc import Sequence

from peftlab.tuning.dataset import TuningDataset
from peftlab.tuning.progress import Progress

MIN_VALIDATION_ROWS = 30
MAX_NAMED_LABELS = 5


def warn_about_splits(dataset: TuningDataset, progress: Progress) -> None:
    """Warn of a validation split with few rows, and of labels that have no row in training or validation."""
    rows = len(dataset.examples.get("validation", ()))
    if 0 < rows < MIN_VALIDATION_ROWS:
        points = round(98 / rows**0.5)  # half of a 95 % interval for a share of one half
        progress.warn(
            f"validation has {rows} rows: their score is uncertain by about {points} points, and it chooses what is "
            "published. Add rows, or name a larger file: data.validation."
        )
    if dataset.task.targets.has_labels:
        for split in ("train", "validation"):
            if split in dataset.examples and (missing := _missing_labels(dataset, split)):
                consequence = "cannot be learned" if split == "train" else "cannot be scored"
                progress.warn(f"{_name(missing)} no row in {split}, and {consequence}. Add rows: data.{split}.")


def _missing_labels(dataset: TuningDataset, split: str) -> list[str]:
    labels_of = dataset.task.targets.labels_of
    seen = Counter(label for example in dataset.examples[split] for label in labels_of(example))
    return [label for label in dataset.task.labels if not seen[label]]


def _name(labels: Sequence[str]) -> str:
    """`label 'a' has`, or `3 labels (a, b, c) have`."""
    if len(labels) == 1:
        return f"label '{labels[0]}' has"
    more = ", …" if len(labels) > MAX_NAMED_LABELS else ""
    return f"{len(labels)} labels ({', '.join(labels[:MAX_NAMED_LABELS])}{more}) have"

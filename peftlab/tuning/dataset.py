"""The data of a run: parsed rows, and later their features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peftlab.data import DataSplits, Ledger, load_rows
from peftlab.errors import ErrorCollector
from peftlab.recipe import Recipe
from peftlab.tasks import Feature, Task, build_task, row_labels

CROSS_VALIDATION = "cross-validation"
"""Stands for the split that consists of the training rows, each predicted by a model trained without it."""


@dataclass(frozen=True)
class TuningDataset:
    """The rows of a recipe with its task: `examples` and `ledgers` by split."""

    rows: DataSplits
    task: Task
    examples: dict[str, list[Any]]
    ledgers: dict[str, Ledger]


@dataclass(frozen=True)
class EncodedDataset(TuningDataset):
    """A dataset with the features that the model reads.

    `features` holds, by split, the features of each example: in the training split truncated at `max_length` tokens, in
    the others split into windows. `folds` are numbers of training rows; if there are any, examples and features have
    the split CROSS_VALIDATION.
    """

    features: dict[str, list[list[Feature]]]
    max_length: int
    folds: Sequence[Sequence[int]] = ()

    @property
    def judged_by(self) -> str | None:
        """The split whose score decides whether the adapter is published; None if no row is held out."""
        return next((split for split in ("test", "validation", CROSS_VALIDATION) if split in self.examples), None)


def load_dataset(recipe: Recipe, errors: ErrorCollector) -> TuningDataset:
    """Read the rows of a recipe, fit its task's labels, and parse each row; every mistake goes to `errors`."""
    labels_of = row_labels(recipe.task, errors)
    rows = load_rows(
        recipe.data,
        errors,
        plain_text=recipe.task.reads_plain_text,
        labels_of=labels_of,
        cross_validates=recipe.cross_validates_few_rows,
    )
    return TuningDataset(rows, *build_task(recipe.task, rows, errors, drop_blank=recipe.data.drop_blank))

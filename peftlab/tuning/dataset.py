"""The data of a run: parsed rows, and later their features."""

from dataclasses import dataclass
from typing import Any

from peftlab.data import DataSplits, Ledger, load_rows
from peftlab.errors import ErrorCollector
from peftlab.recipe import Recipe
from peftlab.tasks import Feature, Task, build_task, row_labels


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
    the others split into windows.
    """

    features: dict[str, list[list[Feature]]]
    max_length: int


def load_dataset(recipe: Recipe, errors: ErrorCollector) -> TuningDataset:
    """Read the rows of a recipe, fit its task's labels, and parse each row; every mistake goes to `errors`."""
    labels_of = row_labels(recipe.task, errors)
    rows = load_rows(recipe.data, errors, plain_text=recipe.task.reads_plain_text, labels_of=labels_of)
    return TuningDataset(rows, *build_task(recipe.task, rows, errors, drop_blank=recipe.data.drop_blank))

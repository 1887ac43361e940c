"""The task section of a recipe + rows → a task with its labels, and every row read as an example."""

from typing import Any

from peftlab.data import Ledger, Rows, Split
from peftlab.data.loading import add_row_problems
from peftlab.data.rows import RowError
from peftlab.errors import IntegrityError, Problems, suggest
from peftlab.recipe import TokenClassification
from peftlab.tasks.contract import Task
from peftlab.tasks.token_classification import TokenClassificationTask

TASKS: dict[str, type[TokenClassificationTask]] = {
    "token-classification": TokenClassificationTask,
}

Examples = dict[str, list[Any]]


def build_task(
    section: TokenClassification, rows: Rows, problems: Problems
) -> tuple[Task, Examples, dict[str, Ledger]]:
    """The task with its labels, the examples of each split, and a ledger of each."""
    task = TASKS[section.type](labels=section.labels or [], tag_scheme=section.tag_scheme)
    ledgers = {name: Ledger(source=split.source) for name, split in rows}
    examples = {name: read_examples(task, split, ledgers[name], problems) for name, split in rows}
    task.learn_labels(examples, problems)
    return task, examples, ledgers


def read_examples(task: Task, split: Split, ledger: Ledger, problems: Problems) -> list[Any]:
    """Every row as an example; rows that cannot be understood are added to `problems` with their place."""
    examples, broken = [], []
    for row in split.rows:
        ledger.read += 1
        try:
            example = task.read(row)
        except RowError as error:
            broken.append(RowError(f"{row.where}: {error}"))
            continue
        ledger.targets_lost += example.lost
        for what, count in example.notes.items():
            ledger.note(what, count)
        examples.append(example)
    add_row_problems(broken, problems)
    return examples


def task_from_manifest(description: dict[str, Any]) -> Task:
    """The task that an adapter's manifest describes.

    Raises:
        IntegrityError: this version of peftlab does not know the task.
    """
    if description["type"] not in TASKS:
        raise IntegrityError(f"unknown task '{description['type']}'. {suggest(description['type'], TASKS)}")
    return TASKS[description["type"]](labels=description["labels"])

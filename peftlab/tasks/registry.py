"""The task section of a recipe + rows → a task with its labels, and every row read as an example."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peftlab.data import DataSplits, Ledger, Split
from peftlab.data.loading import add_invalid_rows
from peftlab.data.rows import RowError
from peftlab.errors import ErrorCollector, IntegrityError, suggest
from peftlab.recipe import TaskSection
from peftlab.tasks.domain_adaptation import domain_adaptation
from peftlab.tasks.generation.reply_metrics import causal_lm
from peftlab.tasks.preference import PreferenceTask
from peftlab.tasks.question_answering import QuestionAnsweringTask
from peftlab.tasks.regression import RegressionTask
from peftlab.tasks.relation_extraction import RelationExtractionTask
from peftlab.tasks.summarization import SummarizationTask
from peftlab.tasks.task import Task
from peftlab.tasks.text_classification import TextClassificationTask
from peftlab.tasks.token_classification import TokenClassificationTask
from peftlab.tasks.translation import TranslationTask

TASKS: dict[str, Callable[..., Task]] = {
    "token-classification": TokenClassificationTask,
    "text-classification": TextClassificationTask,
    "regression": RegressionTask,
    "question-answering": QuestionAnsweringTask,
    "relation-extraction": RelationExtractionTask,
    "causal-lm": causal_lm,
    "translation": TranslationTask,
    "summarization": SummarizationTask,
    "preference": PreferenceTask,
    "domain-adaptation": domain_adaptation,
}

Examples = dict[str, list[Any]]


def build_task(
    section: TaskSection, rows: DataSplits, errors: ErrorCollector
) -> tuple[Task, Examples, dict[str, Ledger]]:
    """The task with its labels, the examples of each split, and a ledger of each."""
    if errors.placeholders & {"task", "task.type"}:
        errors.raise_if_any()  # rows would be read as those of another task
    task = TASKS[section.type](**section.model_dump(exclude={"type"}))
    ledgers = {name: Ledger(source=split.source) for name, split in rows}
    examples = {name: read_examples(task, split, ledgers[name], errors) for name, split in rows}
    task.fit_labels(examples, errors)
    return task, examples, ledgers


def read_examples(task: Task, split: Split, ledger: Ledger, errors: ErrorCollector) -> list[Any]:
    """Every row as an example; rows that cannot be understood are added to `errors` with their place."""
    examples = []
    broken: list[tuple[str, str]] = []
    for row in split.rows:
        ledger.read += 1
        try:
            example = task.read(row)
        except RowError as error:
            broken.append((row.where, str(error)))
            continue
        ledger.num_lost_targets += example.num_lost_targets
        for what, count in example.warnings.items():
            ledger.add_warning(what, count)
        examples.append(example)
    add_invalid_rows(broken, errors, read=ledger.read)
    return examples


def restore_task(task_type: str, labels: Sequence[str], options: Mapping[str, Any], state: Mapping[str, Any]) -> Task:
    """Build the task of a published adapter.

    Raises:
        IntegrityError: this version of peftlab does not know the task.
    """
    if task_type not in TASKS:
        raise IntegrityError(f"unknown task '{task_type}'. {suggest(task_type, TASKS)}")
    task = TASKS[task_type](labels=list(labels), **options)
    task.state |= state
    return task

"""The task section of a recipe + rows → a task with its labels, and every row read as an example."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from peftlab.data import DataSplits, Ledger, Row, Split
from peftlab.data.loading import add_invalid_rows
from peftlab.data.rows import BlankRowError, RowError, TrackedFields
from peftlab.data.splitting import RowLabels
from peftlab.errors import ErrorCollector, IntegrityError, suggest
from peftlab.recipe import TaskSection
from peftlab.recipe import tasks as sections
from peftlab.recipe.plugins import TASK_PLUGINS, Registry
from peftlab.tasks.causal_lm import CausalLmTask
from peftlab.tasks.domain_adaptation import domain_adaptation, example_text, pipeline_tag
from peftlab.tasks.domain_objective import choose_objective
from peftlab.tasks.generation.reply_metrics import causal_lm
from peftlab.tasks.inputs.text_pair import pair_example
from peftlab.tasks.labels.missing_labels import DROP_HINT, DROP_REASON, find_missing_labels, leave_out_unlabelled
from peftlab.tasks.preference import PreferenceTask
from peftlab.tasks.question_answering import QuestionAnsweringTask, without_token_types
from peftlab.tasks.record import ImportedHead, TaskRecord
from peftlab.tasks.regression import RegressionTask
from peftlab.tasks.relation_extraction import RelationExtractionTask
from peftlab.tasks.summarization import SummarizationTask
from peftlab.tasks.task import Task
from peftlab.tasks.text_classification import TextClassificationTask, imported_options
from peftlab.tasks.token_classification import TokenClassificationTask
from peftlab.tasks.translation import TranslationTask

OWN_TASKS = {
    "token-classification": TaskRecord(
        sections.TokenClassification,
        TokenClassificationTask,
        pipeline_tag="token-classification",
        display="entities",
        formats=("conll",),
        output_help=TokenClassificationTask.output_help,
        inspect_rows=TokenClassificationTask.inspect_rows,
        imported=ImportedHead("TOKEN_CLS", labels="tags"),
    ),
    "text-classification": TaskRecord(
        sections.TextClassification,
        TextClassificationTask,
        display="classes",
        output_help=TextClassificationTask.output_help,
        inspect_rows=TextClassificationTask.inspect_rows,
        legacy_options={"labels_by_number": False},
        input_columns=lambda task: ("text", "text_pair"),
        example=pair_example,
        imported=ImportedHead("SEQ_CLS", labels="labels", options=imported_options),
    ),
    "regression": TaskRecord(
        sections.Regression,
        RegressionTask,
        display="number",
        output_help=RegressionTask.output_help,
        input_columns=lambda task: ("text", "text_pair"),
        example=pair_example,
        imported=ImportedHead("SEQ_CLS"),
    ),
    "question-answering": TaskRecord(
        sections.QuestionAnswering,
        QuestionAnsweringTask,
        pipeline_tag="question-answering",
        display="answer",
        example=lambda task: '"Your question" --context "The text that may hold the answer"',
        output_help=QuestionAnsweringTask.output_help,
        input_columns=lambda task: ("question", "context"),
        imported=ImportedHead("QUESTION_ANS", num_outputs=(2,), options=without_token_types),
    ),
    "relation-extraction": TaskRecord(
        sections.RelationExtraction,
        RelationExtractionTask,
        display="relation",
        example=lambda task: '"<e1>Ada Okafor</e1> founded <e2>Solwind</e2>."',
        output_help=RelationExtractionTask.output_help,
        import_refusal="peftlab marks the two spans in the text in its own way, which no other training knows",
    ),
    "causal-lm": TaskRecord(
        sections.CausalLm,
        causal_lm,
        pipeline_tag="text-generation",
        display="reply",
        input_columns=CausalLmTask.input_columns,
    ),
    "translation": TaskRecord(
        sections.Translation, TranslationTask, pipeline_tag="translation", display="generated-text"
    ),
    "summarization": TaskRecord(
        sections.Summarization, SummarizationTask, pipeline_tag="summarization", display="generated-text"
    ),
    "preference": TaskRecord(
        sections.Preference,
        PreferenceTask,
        pipeline_tag="text-generation",
        display="reply",
        input_columns=CausalLmTask.input_columns,
    ),
    "domain-adaptation": TaskRecord(
        sections.DomainAdaptation,
        domain_adaptation,
        complete_section=choose_objective,
        pipeline_tag=pipeline_tag,
        display="continuation",
        example=example_text,
    ),
}
TASKS: Registry[TaskRecord] = Registry(TASK_PLUGINS, TaskRecord, OWN_TASKS)
"""The record of each task type: peftlab's own, and those of installed packages (entry points `peftlab.tasks`)."""

Examples = dict[str, list[Any]]


def build_task(
    section: TaskSection, rows: DataSplits, errors: ErrorCollector, *, drop_blank: bool = False
) -> tuple[Task, Examples, dict[str, Ledger]]:
    """The task with its labels, the examples of each split, and a ledger of each.

    With `drop_blank`, rows without text or label are left out and counted; else they are errors.
    """
    if errors.placeholders & {"task", "task.type"}:
        errors.raise_if_any()  # rows would be read as those of another task
    task = _build(section)
    ledgers = {name: Ledger(source=split.source, warnings=dict(split.left_out)) for name, split in rows}
    examples = {name: read_examples(task, split, ledgers[name], errors, drop_blank=drop_blank) for name, split in rows}
    labels_of = task.targets.labels_of
    missing = find_missing_labels(task.labels, examples, labels_of)
    examples = {
        name: leave_out_unlabelled(
            split, missing, labels_of, ledgers[name], errors, drop=drop_blank, key=f"data.{name}"
        )
        for name, split in examples.items()
    }
    train = rows.splits["train"]
    is_complete = not train.num_unreadable and ledgers["train"].read == len(examples["train"]) + sum(
        ledgers["train"].dropped.values()
    )
    # without all training rows nothing is known about their labels
    task.fit_labels(examples, errors if is_complete or not task.targets.has_labels else ErrorCollector())
    return task, examples, ledgers


def row_labels(section: TaskSection, errors: ErrorCollector) -> RowLabels | None:
    """A function that gives the labels of a row; None if the task has no fixed set of labels."""
    if errors.placeholders & {"task", "task.type"}:
        return None
    task = _build(section)

    def labels_of(row: Row) -> Iterable[str]:
        try:
            return task.targets.labels_of(task.read(row))
        except RowError:  # `read_examples` reports it
            return ()

    return labels_of if task.targets.has_labels else None


def _build(section: TaskSection) -> Task:
    return TASKS[section.type].build(**section.model_dump(exclude={"type"}))


def read_examples(
    task: Task, split: Split, ledger: Ledger, errors: ErrorCollector, *, drop_blank: bool = False
) -> list[Any]:
    """Every row as an example; rows that cannot be understood are added to `errors` with their place.

    With `drop_blank`, rows without text or label are counted instead.
    """
    TASKS[task.type].inspect_rows(task, split.rows, errors)
    examples = []
    broken: list[tuple[str, str]] = []
    seen: set[str] = set()
    for row in split.rows:
        ledger.read += 1
        try:
            example = task.read(Row(TrackedFields(row.fields, seen), row.where))
        except BlankRowError as error:
            if drop_blank:
                ledger.drop(DROP_REASON)
            else:
                broken.append((row.where, f"{error}; {DROP_HINT}"))
            continue
        except RowError as error:
            broken.append((row.where, str(error)))
            continue
        ledger.num_lost_targets += example.num_lost_targets
        for what, count in example.warnings.items():
            ledger.add_warning(what, count)
        examples.append(example)
    add_invalid_rows(broken, errors, read=ledger.read)
    _count_unread_columns(split.rows, seen, ledger)
    return examples


def _count_unread_columns(rows: Sequence[Row], seen: Collection[str], ledger: Ledger) -> None:
    """Count in how many rows each column that the task does not read has a value."""
    for row in rows:
        for name in row.fields.keys() - seen:
            if row.fields[name] not in (None, "", [], {}):
                ledger.add_warning(f"column not read: {name}")


def restore_task(task_type: str, labels: Sequence[str], options: Mapping[str, Any], state: Mapping[str, Any]) -> Task:
    """Build the task of a published adapter.

    Raises:
        IntegrityError: this version of peftlab does not know the task.
    """
    if task_type not in TASKS:
        raise IntegrityError(f"unknown task '{task_type}'. {suggest(task_type, TASKS)}")
    record = TASKS[task_type]
    task = record.build(labels=list(labels), **{**record.legacy_options, **options})
    task.state |= state
    return task

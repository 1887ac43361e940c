"""`evaluate()` and `evaluate_mixed()`: score published adapters on labelled rows, with the predictions of a bank."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from pydantic import ValidationError

from peftlab.data import Ledger, Split
from peftlab.data.adapter_column import AdapterRow, read_adapter_rows
from peftlab.data.loading import read_split
from peftlab.data.prodigy import leave_out_rejected
from peftlab.errors import ErrorCollector, RecipeError, ValidationIssue
from peftlab.recipe import DataSection
from peftlab.runtime.bank import load
from peftlab.runtime.options import BankOptions
from peftlab.runtime.request import Answer
from peftlab.store import STACK_SEPARATOR, Adapter, Store
from peftlab.tasks import TASKS, Prediction, Scores, Task, read_examples
from peftlab.tasks.inputs.encoding import ProgressCallback
from peftlab.tasks.labels.label_set import reject_unknown_labels
from peftlab.tasks.labels.missing_labels import find_missing_labels, leave_out_unlabelled


@dataclass(frozen=True)
class Evaluation:
    """The scores of an adapter on labelled rows.

    Attributes:
        name: The adapter's name and version; for a stack, those of all parts.
        adapter: The published adapter; for a stack, the top adapter.
        task: Its task.
        scores: Its scores.
        ledger: How many rows were used and dropped.
        predictions: One for each row, in order.
        warnings: Those of the bank.
    """

    name: str
    adapter: Adapter
    task: Task
    scores: Scores
    ledger: Ledger
    predictions: list[Prediction]
    warnings: list[str]


@dataclass(frozen=True)
class MixedEvaluation:
    """Each adapter's evaluation on its own rows, by its name in the file; `answers` has all rows in order."""

    by_adapter: dict[str, Evaluation]
    answers: list[Answer]
    warnings: list[str]


def evaluate(
    adapter: str,
    data: str | Path,
    *,
    data_format: str = "auto",
    columns: Mapping[str, str] | None = None,
    header: Sequence[str] | None = None,
    encoding: str = "utf-8",
    drop_blank: bool = False,
    group_by: str | None = None,
    store: str | Path = "adapters",
    on_progress: ProgressCallback = lambda done, total: None,
    **options: Unpack[BankOptions],
) -> Evaluation:
    """Score an adapter on the labelled rows of a file.

    Args:
        adapter: `name` or `name@version`, or `lower+top`, one on top of the other.
        data: A file in any format that a recipe takes.
        data_format: The format, or auto.
        columns: Our column name → the name in the file.
        header: Column names of a csv or tsv file without a header line.
        encoding: Of a text file.
        drop_blank: Leave out, and count, rows without text or label; otherwise they are errors.
        group_by: For a table with one word a row: the column that names the sentence.
        store: Folder of the store.
        on_progress: Called with the number of inputs that are done, and of all inputs.
        options: device, quantization, precision, memory, slots, trust_remote_code: as for `load`.

    Raises:
        AdapterNotFoundError: no such adapter.
        BaseNotFoundError: its base is not found.
        IntegrityError: it is damaged, or was tuned on another base.
        RecipeError: rows cannot be read, or have labels that the adapter does not know; lists every problem.
    """
    section = _data_section(data, data_format, columns, header, encoding, drop_blank=drop_blank, group_by=group_by)
    bank = load(adapter, store=store, **options)
    with ErrorCollector() as errors:
        plain = TASKS[bank.task(adapter).type].section.reads_plain_text
        split = leave_out_rejected(read_split(section, str(data), errors, key="", plain_text=plain))
        rows = _read_labelled(bank.adapter(adapter), split, errors, split_name="the data", drop_blank=drop_blank)
    name = STACK_SEPARATOR.join(str(bank.adapter(part)) for part in adapter.split(STACK_SEPARATOR))
    predictions = bank.predict_examples(adapter, rows.examples, on_progress)
    return _score(name, rows, predictions, bank.warnings)


def evaluate_mixed(
    data: str | Path,
    *,
    by: str,
    data_format: str = "auto",
    columns: Mapping[str, str] | None = None,
    header: Sequence[str] | None = None,
    encoding: str = "utf-8",
    drop_blank: bool = False,
    group_by: str | None = None,
    store: str | Path = "adapters",
    on_progress: ProgressCallback = lambda done, total: None,
    **options: Unpack[BankOptions],
) -> MixedEvaluation:
    """Score several adapters, of any tasks, on the labelled rows of one file, with one bank.

    Args:
        data: A file in any format that a recipe takes; each row has the columns of its own adapter's task.
        by: The column that names each row's adapter: `name` or `name@version`.
        data_format: As for `evaluate`.
        columns: As for `evaluate`.
        header: As for `evaluate`.
        encoding: As for `evaluate`.
        drop_blank: As for `evaluate`.
        group_by: As for `evaluate`.
        store: As for `evaluate`.
        options: As for `evaluate`.
        on_progress: Called with the number of rows that are done, and of all rows.

    Raises:
        BaseNotFoundError: their base is not found.
        IntegrityError: an adapter is damaged, or was tuned on another base than the first.
        RecipeError: rows name no adapter or an unknown one, cannot be read, or have labels that their adapter does not
            know; lists every problem.
    """
    section, adapter_store = (
        _data_section(data, data_format, columns, header, encoding, drop_blank=drop_blank, group_by=group_by),
        Store(store),
    )
    with ErrorCollector() as errors:
        named = read_adapter_rows(section, str(data), by, errors, resolve=adapter_store.resolve_version)
        groups = _read_by_adapter(named, Path(data).name, adapter_store, errors, drop_blank=drop_blank)
    bank = load(*groups, store=store, **options)
    answers = list(bank.stream_examples(_in_order(named, groups), on_progress))
    predictions: dict[str, list[Prediction]] = {name: [] for name in groups}
    for answer in answers:
        predictions[answer.adapter].append(answer.prediction)
    evaluations = {
        name: _score(str(rows.adapter), rows, predictions[name], bank.warnings) for name, rows in groups.items()
    }
    return MixedEvaluation(evaluations, answers, bank.warnings)


@dataclass(frozen=True)
class _LabelledRows:
    """The labelled rows of one adapter, read by its task."""

    adapter: Adapter
    task: Task
    examples: list[Any]
    ledger: Ledger


def _read_labelled(
    adapter: Adapter, split: Split, errors: ErrorCollector, *, split_name: str, drop_blank: bool
) -> _LabelledRows:
    """Read a split by an adapter's task; what cannot be scored is added to `errors`."""
    task, ledger = adapter.task, Ledger(source=split.source, warnings=dict(split.left_out))
    examples = read_examples(task, split, ledger, errors, drop_blank=drop_blank)
    labels_of = task.targets.labels_of
    missing = find_missing_labels(task.labels, {split_name: examples}, labels_of) if task.labels else set()
    examples = leave_out_unlabelled(examples, missing, labels_of, ledger, errors, drop=drop_blank)
    reject_unknown_labels(task.labels, examples, labels_of, errors, split=split_name, missing_in="the adapter")
    ledger.used = len(examples)
    ledger.targets = sum(task.targets.count(example) + example.num_lost_targets for example in examples)
    return _LabelledRows(adapter, task, examples, ledger)


def _read_by_adapter(
    named: Iterable[AdapterRow], source: str, store: Store, errors: ErrorCollector, *, drop_blank: bool
) -> dict[str, _LabelledRows]:
    """Read each adapter's rows, by its name, which every error names."""
    splits: dict[str, Split] = {}
    for name, row in named:
        splits.setdefault(name, Split([], source)).rows.append(row)
    groups = {}
    for name, split in splits.items():
        own_errors = ErrorCollector()
        groups[name] = _read_labelled(
            store.resolve(name), leave_out_rejected(split), own_errors, split_name="its rows", drop_blank=drop_blank
        )
        errors.issues += [replace(issue, key=name) for issue in own_errors.issues]
    return groups


def _in_order(named: Iterable[AdapterRow], groups: Mapping[str, _LabelledRows]) -> list[tuple[str, Any]]:
    """Each example with the name of its adapter, in the order of the file; rows that were left out have none."""
    examples = {name: deque(rows.examples) for name, rows in groups.items()}
    ordered = []
    for name, row in named:
        if examples[name] and examples[name][0].where == row.where:
            ordered.append((name, examples[name].popleft()))
    return ordered


def _score(name: str, rows: _LabelledRows, predictions: list[Any], warnings: list[str]) -> Evaluation:
    scores = rows.task.metric.score(rows.examples, predictions)
    return Evaluation(name, rows.adapter, rows.task, scores, rows.ledger, predictions, warnings)


def _data_section(
    data: str | Path,
    data_format: str,
    columns: Mapping[str, str] | None,
    header: Sequence[str] | None,
    encoding: str,
    **others: Any,
) -> DataSection:
    values: dict[str, Any] = {"train": str(data), "format": data_format, "encoding": encoding, **others}
    values |= {"columns": dict(columns or {}), "header": list(header) if header else None}
    try:
        return DataSection.model_validate(values)
    except ValidationError as error:
        issue = error.errors()[0]
        message = issue["msg"].removeprefix("Value error, ").removeprefix("Input ")
        raise RecipeError([ValidationIssue(f"{message}, not {issue['input']!r}.", key=str(issue["loc"][0]))]) from None

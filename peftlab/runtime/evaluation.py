"""`evaluate()` and `evaluate_mixed()`: score published adapters on labelled rows, with the predictions of a bank."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from pydantic import ValidationError

from peftlab.data import Ledger, Split
from peftlab.data.adapter_column import AdapterRow, read_adapter_rows
from peftlab.data.loading import read_split
from peftlab.errors import ErrorCollector, RecipeError, ValidationIssue
from peftlab.recipe import DataSection
from peftlab.runtime.bank import load
from peftlab.runtime.options import BankOptions
from peftlab.runtime.request import Answer
from peftlab.store import STACK_SEPARATOR, Adapter, Store
from peftlab.tasks import TASKS, Prediction, Scores, Task, read_examples
from peftlab.tasks.inputs.encoding import ProgressCallback
from peftlab.tasks.labels.label_set import reject_unknown_labels


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
        store: Folder of the store.
        on_progress: Called with the number of inputs that are done, and of all inputs.
        options: device, quantization, precision, memory, slots, trust_remote_code: as for `load`.

    Raises:
        AdapterNotFoundError: no such adapter.
        BaseNotFoundError: its base is not found.
        IntegrityError: it is damaged, or was tuned on another base.
        RecipeError: rows cannot be read, or have labels that the adapter does not know; lists every problem.
    """
    section = _data_section(data, data_format, columns, header, encoding)
    bank = load(adapter, store=store, **options)
    with ErrorCollector() as errors:
        plain = TASKS[bank.task(adapter).type].section.reads_plain_text
        split = read_split(section, str(data), errors, key="", plain_text=plain)
        rows = _read_labelled(bank.adapter(adapter), split, errors, split_name="the data")
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
        store: As for `evaluate`.
        options: As for `evaluate`.
        on_progress: Called with the number of rows that are done, and of all rows.

    Raises:
        BaseNotFoundError: their base is not found.
        IntegrityError: an adapter is damaged, or was tuned on another base than the first.
        RecipeError: rows name no adapter or an unknown one, cannot be read, or have labels that their adapter does not
            know; lists every problem.
    """
    section, adapter_store = _data_section(data, data_format, columns, header, encoding), Store(store)
    with ErrorCollector() as errors:
        named = read_adapter_rows(section, str(data), by, errors, resolve=adapter_store.resolve_version)
        groups = _read_by_adapter(named, Path(data).name, adapter_store, errors)
    bank = load(*groups, store=store, **options)
    examples = {name: iter(rows.examples) for name, rows in groups.items()}
    answers = list(bank.stream_examples([(name, next(examples[name])) for name, _ in named], on_progress))
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


def _read_labelled(adapter: Adapter, split: Split, errors: ErrorCollector, *, split_name: str) -> _LabelledRows:
    """Read a split by an adapter's task; what cannot be scored is added to `errors`."""
    task, ledger = adapter.task, Ledger(source=split.source)
    examples = read_examples(task, split, ledger, errors)
    reject_unknown_labels(
        task.labels, examples, task.targets.labels_of, errors, split=split_name, missing_in="the adapter"
    )
    ledger.used = len(examples)
    ledger.targets = sum(task.targets.count(example) + example.num_lost_targets for example in examples)
    return _LabelledRows(adapter, task, examples, ledger)


def _read_by_adapter(
    named: Iterable[AdapterRow], source: str, store: Store, errors: ErrorCollector
) -> dict[str, _LabelledRows]:
    """Read each adapter's rows, by its name, which every error names."""
    splits: dict[str, Split] = {}
    for name, row in named:
        splits.setdefault(name, Split([], source)).rows.append(row)
    groups = {}
    for name, split in splits.items():
        own_errors = ErrorCollector()
        groups[name] = _read_labelled(store.resolve(name), split, own_errors, split_name="its rows")
        errors.issues += [replace(issue, key=name) for issue in own_errors.issues]
    return groups


def _score(name: str, rows: _LabelledRows, predictions: list[Any], warnings: list[str]) -> Evaluation:
    scores = rows.task.metric.score(rows.examples, predictions)
    return Evaluation(name, rows.adapter, rows.task, scores, rows.ledger, predictions, warnings)


def _data_section(
    data: str | Path,
    data_format: str,
    columns: Mapping[str, str] | None,
    header: Sequence[str] | None,
    encoding: str,
) -> DataSection:
    values: dict[str, Any] = {"train": str(data), "format": data_format, "encoding": encoding}
    values |= {"columns": dict(columns or {}), "header": list(header) if header else None}
    try:
        return DataSection.model_validate(values)
    except ValidationError as error:
        issue = error.errors()[0]
        message = issue["msg"].removeprefix("Value error, ").removeprefix("Input ")
        raise RecipeError([ValidationIssue(f"{message}, not {issue['input']!r}.", key=str(issue["loc"][0]))]) from None

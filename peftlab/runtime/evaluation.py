"""`evaluate()` and `evaluate_mixed()`: published adapters on labelled rows, scored by what serving predicts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from pydantic import ValidationError

from peftlab.data import Ledger, Split
from peftlab.data.adapter_column import AdapterRow, read_adapter_rows
from peftlab.data.loading import read_split
from peftlab.errors import ErrorCollector, RecipeError, ValidationIssue
from peftlab.recipe import PLAIN_TEXT_TASKS, DataSection
from peftlab.runtime.bank import Serving, load
from peftlab.runtime.request import Answer
from peftlab.store import STACK_SEPARATOR, Adapter, Store
from peftlab.tasks import Prediction, Scores, Task, read_examples
from peftlab.tasks.inputs.encoding import ProgressCallback
from peftlab.tasks.labels.label_set import reject_unknown_labels


@dataclass(frozen=True)
class Evaluation:
    """An adapter's scores on rows, with a ledger of them, its predictions in their order, and the bank's `notes`.

    `name` tells its version; of a stack it names all parts, and `adapter` is the top.
    """

    name: str
    adapter: Adapter
    task: Task
    scores: Scores
    ledger: Ledger
    predictions: list[Prediction]
    notes: list[str]


@dataclass(frozen=True)
class MixedEvaluation:
    """Each adapter's evaluation on its own rows, by its name there; `answers` are in the order of all rows."""

    by_adapter: dict[str, Evaluation]
    answers: list[Answer]
    notes: list[str]


def evaluate(
    adapter: str,
    data: str | Path,
    *,
    data_format: str = "auto",
    columns: Mapping[str, str] | None = None,
    header: Sequence[str] | None = None,
    encoding: str = "utf-8",
    store: str | Path = "adapters",
    told: ProgressCallback = lambda done, total: None,
    **serving: Unpack[Serving],
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
        told: Hears how many inputs are done, and of how many.
        serving: device, quantization, precision, memory, slots, trust_remote_code: as for `load`.

    Raises:
        AdapterNotFoundError: no such adapter.
        BaseNotFoundError: its base is nowhere.
        IntegrityError: it is damaged, or was tuned on another base.
        RecipeError: rows cannot be read, or have labels that the adapter does not know; lists every problem.
    """
    section = _section(data, data_format, columns, header, encoding)
    bank = load(adapter, store=store, **serving)
    with ErrorCollector() as errors:
        plain = bank.task(adapter).type in PLAIN_TEXT_TASKS
        split = read_split(section, str(data), errors, key="", plain_text=plain)
        rows = _labelled(bank.adapter(adapter), split, errors, called="the data")
    name = STACK_SEPARATOR.join(str(bank.adapter(part)) for part in adapter.split(STACK_SEPARATOR))
    return _scored(name, rows, bank.run(adapter, rows.examples, told), bank.notes)


def evaluate_mixed(
    data: str | Path,
    *,
    by: str,
    data_format: str = "auto",
    columns: Mapping[str, str] | None = None,
    header: Sequence[str] | None = None,
    encoding: str = "utf-8",
    store: str | Path = "adapters",
    told: ProgressCallback = lambda done, total: None,
    **serving: Unpack[Serving],
) -> MixedEvaluation:
    """Score several adapters, of any tasks, on the labelled rows of one file, in one pass of one bank.

    Args:
        data: A file in any format that a recipe takes; each row has the columns of its own adapter's task.
        by: The column that names each row's adapter: `name` or `name@version`.
        data_format: As for `evaluate`.
        columns: As for `evaluate`.
        header: As for `evaluate`.
        encoding: As for `evaluate`.
        store: As for `evaluate`.
        told: Hears how many rows are done, and of how many.
        serving: As for `evaluate`.

    Raises:
        BaseNotFoundError: their base is nowhere.
        IntegrityError: an adapter is damaged, or was tuned on another base than the first.
        RecipeError: rows name no adapter, or none that there is, cannot be read, or have labels that their adapter does
            not know; lists every problem.
    """
    section, shelf = _section(data, data_format, columns, header, encoding), Store(store)
    with ErrorCollector() as errors:
        named = read_adapter_rows(section, str(data), by, errors, resolve=shelf.resolve_version)
        groups = _labelled_by_adapter(named, Path(data).name, shelf, errors)
    bank = load(*groups, store=store, **serving)
    examples = {name: iter(rows.examples) for name, rows in groups.items()}
    answers = list(bank.stream_examples([(name, next(examples[name])) for name, _ in named], told))
    predictions: dict[str, list[Prediction]] = {name: [] for name in groups}
    for answer in answers:
        predictions[answer.adapter].append(answer.prediction)
    scored = {name: _scored(str(rows.adapter), rows, predictions[name], bank.notes) for name, rows in groups.items()}
    return MixedEvaluation(scored, answers, bank.notes)


@dataclass(frozen=True)
class _Labelled:
    """Rows of one adapter, read by its task."""

    adapter: Adapter
    task: Task
    examples: list[Any]
    ledger: Ledger


def _labelled(adapter: Adapter, split: Split, errors: ErrorCollector, *, called: str) -> _Labelled:
    """Whatever cannot be scored is added to `errors`."""
    task, ledger = adapter.task, Ledger(source=split.source)
    examples = read_examples(task, split, ledger, errors)
    reject_unknown_labels(task.labels, examples, task.labels_of, errors, split=called, missing_in="the adapter")
    ledger.used = len(examples)
    ledger.targets = sum(task.count(example) + example.num_lost_targets for example in examples)
    return _Labelled(adapter, task, examples, ledger)


def _labelled_by_adapter(
    named: Iterable[AdapterRow], source: str, shelf: Store, errors: ErrorCollector
) -> dict[str, _Labelled]:
    """Each adapter's rows, by its name; problems are told with it."""
    splits: dict[str, Split] = {}
    for name, row in named:
        splits.setdefault(name, Split([], source)).rows.append(row)
    groups = {}
    for name, split in splits.items():
        mine = ErrorCollector()
        groups[name] = _labelled(shelf.resolve(name), split, mine, called="its rows")
        errors.issues += [replace(issue, key=name) for issue in mine.issues]
    return groups


def _scored(name: str, rows: _Labelled, predictions: list[Any], notes: list[str]) -> Evaluation:
    scores = rows.task.score(rows.examples, predictions)
    return Evaluation(name, rows.adapter, rows.task, scores, rows.ledger, predictions, notes)


def _section(
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
        wrong = error.errors()[0]
        name = str(wrong["loc"][0])
        message = wrong["msg"].removeprefix("Value error, ").removeprefix("Input ")
        raise RecipeError([ValidationIssue(f"{message}, not {wrong['input']!r}.", key=name)]) from None

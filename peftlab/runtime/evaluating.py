"""`evaluate()`: a published adapter on labelled rows, scored by the very predictions that serving gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from peftlab.data import Ledger
from peftlab.data.loading import read_split
from peftlab.errors import Problem, Problems, RecipeError
from peftlab.recipe import DataSection, Quantization
from peftlab.runtime.bank import load
from peftlab.store import Adapter
from peftlab.tasks import Prediction, Scores, Task, read_examples
from peftlab.tasks.label_sets import refuse_unknown
from peftlab.tasks.tokenizing import Told


@dataclass(frozen=True)
class Evaluation:
    """An adapter's scores on rows, with a ledger of them, its predictions in their order, and the bank's `notes`."""

    adapter: Adapter
    task: Task
    scores: Scores
    ledger: Ledger
    predictions: list[Prediction]
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
    device: str = "auto",
    quantization: Literal["none"] | Quantization | None = None,
    trust_remote_code: bool = False,
    told: Told = lambda done, total: None,
) -> Evaluation:
    """Score an adapter on the labelled rows of a file.

    Args:
        adapter: `name` or `name@version`.
        data: A file in any format that a recipe takes.
        data_format: The format, or auto.
        columns: Our column name → the name in the file.
        header: Column names of a csv or tsv file without a header line.
        encoding: Of a text file.
        store: Folder of the store.
        device: auto, cpu, cuda or mps.
        quantization: Hold the base so; None takes it as the adapter was tuned on; see `load`.
        trust_remote_code: Run Python code that comes with the base, if the adapter was tuned with it.
        told: Hears how many inputs are done, and of how many.

    Raises:
        AdapterNotFoundError: no such adapter.
        BaseNotFoundError: its base is nowhere.
        IntegrityError: it is damaged, or was tuned on another base.
        RecipeError: rows cannot be read, or have labels that the adapter does not know; lists every problem.
    """
    section = _section(
        train=str(data),
        format=data_format,
        columns=dict(columns or {}),
        header=list(header) if header else None,
        encoding=encoding,
    )
    bank = load(adapter, store=store, device=device, quantization=quantization, trust_remote_code=trust_remote_code)
    task = bank.task(adapter)
    with Problems() as problems:
        split = read_split(section, str(data), problems, key="")
        ledger = Ledger(source=split.source)
        examples = read_examples(task, split, ledger, problems)
        refuse_unknown(task.labels, examples, task.labels_of, problems, split="the data", missing_in="the adapter")
    ledger.used = len(examples)
    ledger.targets = sum(task.count(example) + example.lost for example in examples)
    predictions: list[Any] = bank.run(adapter, examples, told)
    return Evaluation(bank.adapter(adapter), task, task.score(examples, predictions), ledger, predictions, bank.notes)


def _section(**values: Any) -> DataSection:
    try:
        return DataSection.model_validate(values)
    except ValidationError as error:
        wrong = error.errors()[0]
        name = str(wrong["loc"][0])
        message = wrong["msg"].removeprefix("Value error, ").removeprefix("Input ")
        raise RecipeError([Problem(f"{message}, not {wrong['input']!r}.", key=name)]) from None

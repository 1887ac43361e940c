"""`peftlab predict`."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from peftlab.cli.adapter_names import check_adapter_source, resolve_tasks, split_adapter_names
from peftlab.cli.console import prediction_bar, print_notes
from peftlab.cli.heavy import runtime
from peftlab.cli.help_layout import Command, argument, option
from peftlab.cli.options import (
    OUTPUT,
    ROWS,
    by_option,
    columns_option,
    device_option,
    format_option,
    group_by_option,
    json_option,
    memory_option,
    precision_option,
    quantization_option,
    slots_option,
    store_option,
    trust_option,
)
from peftlab.cli.prediction_view import print_conll, print_json, print_predictions
from peftlab.data.adapter_column import read_adapter_rows
from peftlab.data.loading import read_split
from peftlab.errors import ErrorCollector
from peftlab.recipe import DataSection
from peftlab.store import Store
from peftlab.tasks import TASKS
from peftlab.tasks.inputs.rows import read_input_rows

if TYPE_CHECKING:
    from peftlab.data import Row
    from peftlab.runtime import Bank
    from peftlab.tasks import Task

TABLE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".conll")
EXAMPLE = """\
peftlab predict ner-clinic "The patient took two paracetamol."
peftlab predict sentiment-films,sentiment-eats --file reviews.csv --json\
"""


@click.command(cls=Command, example=EXAMPLE)
@argument(
    "adapters",
    metavar="[ADAPTER[,ADAPTER…]]",
    required=False,
    description="Adapters, each as name, name@version, or a stack lower+top of two adapters, such as a task on top of "
    "its domain.",
)
@argument("texts", metavar="[TEXT]…", nargs=-1, description="Input texts.")
@option(
    "--context",
    metavar="TEXT|@FILE",
    section=ROWS,
    help="Second input of every TEXT: the context of a question, or the second text of a pair.",
)
@option(
    "--file",
    "-f",
    "file",
    metavar="FILE",
    section=ROWS,
    help="Read the inputs from FILE: one text per line, or rows with columns if it is a "
    f"{', '.join(TABLE_SUFFIXES[:-1])} or {TABLE_SUFFIXES[-1]} file.",
)
@by_option
@format_option
@columns_option
@group_by_option
@option(
    "--conll",
    "scheme",
    type=click.Choice(["iob1", "iob2", "iobes"]),
    section=OUTPUT,
    help="Print one word and its tag per line, for token classification.",
)
@json_option
@store_option
@device_option
@quantization_option
@precision_option
@memory_option
@slots_option
@trust_option
def predict(
    adapters: str | None,
    texts: tuple[str, ...],
    context: str | None,
    file: str | None,
    by: str | None,
    data_format: str,
    columns: dict[str, str],
    group_by: str | None,
    scheme: str | None,
    as_json: bool,
    store: str,
    **settings: Any,
) -> None:
    """Predict with one or several adapters.

    All adapters share one base model in memory. With --by, each row of --file names its own adapter.

    Texts come from arguments, from --file, or from standard input, one per line.
    Relation extraction takes marked spans: "<e1>Ada</e1> founded <e2>Solwind</e2>."

    With --json, each input and adapter gives one line with `adapter`, the input and the prediction.
    """
    check_adapter_source(by, adapters, *texts)
    _check_options(by, file, data_format, columns, group_by, scheme, as_json)
    layout = {"format": data_format, "columns": columns, "group_by": group_by}
    context = _read_context(context)
    with ErrorCollector() as errors:
        if by:
            inputs, tasks = _read_rows_by_column(by, str(file), layout, store, errors)
        else:
            rows = _read_rows(texts, file, layout)
            tasks = resolve_tasks(split_adapter_names(adapters), store)
            inputs = [(name, row) for row in rows for name in tasks]
        inputs = [(name, _with_context(row, context, name, tasks[name])) for name, row in inputs]
        _check_scheme(scheme, tasks)
        examples = list(read_input_rows(inputs, tasks, errors))  # raises all errors before the base is loaded
    bank = runtime.load(*tasks, store=store, **settings)
    print_notes(bank.warnings)
    num_notes, names = len(bank.warnings), [name for name, _ in inputs]
    _print_predictions(bank, list(zip(names, examples, strict=True)), scheme, as_json)
    print_notes(bank.warnings[num_notes:])


def _print_predictions(bank: "Bank", examples: list[tuple[str, Any]], scheme: str | None, as_json: bool) -> None:
    """Print predictions as soon as they are computed, with a progress bar if there are many rows."""
    with prediction_bar(len(examples)) as update_bar:
        predictions = bank.stream_examples(examples, update_bar)
        if as_json:
            print_json(predictions)
        elif scheme:
            print_conll(predictions, scheme)
        else:
            print_predictions(
                predictions, {name: bank.task(name) for name in dict.fromkeys(name for name, _ in examples)}
            )


def _check_options(
    by: str | None,
    file: str | None,
    data_format: str,
    columns: dict[str, str],
    group_by: str | None,
    scheme: str | None,
    as_json: bool,
) -> None:
    """Refuse options that would have no effect."""
    if scheme and as_json:
        raise click.UsageError("--conll and --json exclude each other; give one of them.")
    if file and _is_table(file, data_format):
        return
    suffixes = ", ".join(TABLE_SUFFIXES)
    for name, is_set in (
        ("--by", by),
        ("--column", columns),
        ("--group-by", group_by),
        ("--format", data_format != "auto" and not file),
    ):
        if is_set:
            raise click.UsageError(f"{name} needs rows with columns: give a {suffixes} file with --file, or --format.")


def _check_scheme(scheme: str | None, tasks: "dict[str, Task]") -> None:
    for name, task in tasks.items():
        if scheme and "conll" not in TASKS[task.type].formats:
            raise click.UsageError(f"{name} predicts no tags; --conll is for token classification.")


def _read_rows(texts: tuple[str, ...], file: str | None, layout: dict[str, Any]) -> "list[str] | list[Row]":
    if texts and file:
        raise click.UsageError("give texts as arguments or with --file, not both.")
    if texts:
        return list(texts)
    if file and _is_table(file, layout["format"]):
        return _read_table(file, layout)
    if file:
        return _split_lines(_read_text(Path(file)))
    if sys.stdin.isatty():
        raise click.UsageError("no text. Give it as an argument, with --file, or on standard input.")
    return _split_lines(sys.stdin.read())


def _is_table(file: str, data_format: str) -> bool:
    return data_format != "auto" or Path(file).suffix.lower() in TABLE_SUFFIXES


def _read_table(file: str, layout: dict[str, Any]) -> "list[Row]":
    with ErrorCollector() as errors:
        return read_split(_data_section(file, layout), file, errors, key="").rows


def _read_rows_by_column(
    by: str, file: str, layout: dict[str, Any], store: str, errors: ErrorCollector
) -> "tuple[list[tuple[str, Any]], dict[str, Task]]":
    """Read the rows of a file with the names of their adapters, and the tasks of these adapters by name."""
    named = read_adapter_rows(_data_section(file, layout), file, by, errors, resolve=Store(store).resolve_version)
    return list(named), resolve_tasks(list(dict.fromkeys(name for name, _ in named)), store)


def _data_section(file: str, layout: dict[str, Any]) -> DataSection:
    return DataSection.model_validate({"train": file, **layout})


def _read_context(context: str | None) -> str | None:
    return _read_text(Path(context[1:])).strip() if context and context.startswith("@") else context


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise click.UsageError(f"{file}: {reason}.") from None


def _with_context(row: Any, context: str | None, name: str, task: "Task") -> Any:
    """Add the context to a row, under the column name that the adapter's task uses."""
    if context is None:
        return row
    first, *others = TASKS[task.type].input_columns(task)
    if not others:
        raise click.UsageError(f"--context is not an input of {name} ({task.type}).")
    if isinstance(row, str):
        return {first: row, others[0]: context}
    return replace(row, fields={**row.fields, others[0]: context})


def _split_lines(content: str) -> list[str]:
    """Split into lines; empty lines are kept, so that line n of the output belongs to line n of the input."""
    return content.removesuffix("\n").split("\n") if content else []

"""`peftlab predict`."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from peftlab.cli.options import (
    by_option,
    columns_option,
    device_option,
    format_option,
    json_option,
    memory_option,
    precision_option,
    quantization_option,
    slots_option,
    store_option,
    trust_option,
)
from peftlab.errors import ErrorCollector
from peftlab.recipe import DataSection
from peftlab.tasks.inputs.rows import read_input_rows

if TYPE_CHECKING:
    from peftlab.data import Row
    from peftlab.runtime import Bank
    from peftlab.tasks import Task

TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".conll")


@click.command()
@click.argument("adapters", metavar="[ADAPTER[,ADAPTER…]]", required=False)
@click.argument("texts", metavar="[TEXT]…", nargs=-1)
@click.option(
    "--context", metavar="TEXT|@FILE", help="What every TEXT is about: a question's context, a pair's second text."
)
@click.option(
    "--file",
    "-f",
    "file",
    metavar="FILE",
    help="Read rows from FILE: one text a line, or the columns of a .jsonl, .json, .csv, .tsv, .conll or .parquet.",
)
@by_option
@format_option
@columns_option
@click.option(
    "--conll",
    "scheme",
    type=click.Choice(["iob1", "iob2", "iobes"]),
    help="Print a word and its tag a line (token classification).",
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
    scheme: str | None,
    as_json: bool,
    store: str,
    **settings: Any,
) -> None:
    """Run texts through one adapter, or through several on the same resident base.

    Texts come as arguments, from --file, or from standard input, one a line. ADAPTER is a name, or name@version, or
    lower+top, one on top of the other as a task on its domain; with --by, each row of --file has its own.
    Relations are asked as "<e1>Ada</e1> founded <e2>Solwind</e2>." With --json, each row and adapter gives one line
    with `adapter`, what was asked, and the prediction.
    """
    refuse_beside(by, adapters, *texts)
    _refuse_together(by, file, data_format, columns, scheme, as_json)
    about = _context(context)
    with ErrorCollector() as errors:
        if by:
            asked, tasks = _rows_by(by, str(file), data_format, columns, store, errors)
        else:
            rows = _rows(texts, file, data_format, columns)
            tasks = resolve_first(_names(adapters), store)
            asked = [(name, row) for row in rows for name in tasks]
        asked = [(name, _with_context(row, about, name, tasks[name])) for name, row in asked]
        _refuse_untagged(scheme, tasks)
        for _ in read_input_rows(asked, tasks, errors):
            pass  # only for the problems: whatever cannot be asked is told before anything is computed

    from peftlab.cli.console import print_notes
    from peftlab.runtime import load

    bank = load(*tasks, store=store, **settings)
    print_notes(bank.notes)
    _print(bank, asked, scheme, as_json)


def _print(bank: "Bank", asked: list[tuple[str, Any]], scheme: str | None, as_json: bool) -> None:
    """Answers as they come, a bar beside those of many rows."""
    from peftlab.cli.console import prediction_bar
    from peftlab.cli.prediction_view import print_conll, print_json, print_predictions

    with prediction_bar(len(asked)) as moved:
        answers = bank.stream(asked, told=lambda done: moved(done, len(asked)))
        if as_json:
            print_json(answers)
        elif scheme:
            print_conll(answers, scheme)
        else:
            print_predictions(answers, {name: bank.task(name) for name in dict.fromkeys(name for name, _ in asked)})


def refuse_beside(by: str | None, *names: str | None) -> None:
    """Adapters come from arguments or from a column of the rows: one of the two."""
    given = [name for name in names if name]
    if by and given:
        raise click.UsageError(
            f"with --by, the column '{by}' names the adapter of each row; leave '{given[0]}' out, or --by."
        )
    if not (by or given):
        raise click.UsageError("name an ADAPTER, or with --by COLUMN the column of the rows that names theirs.")


def resolve_first(names: list[str], store: str) -> "dict[str, Task]":
    """The tasks of adapters, of a stack its top's; a wrong name is told at once, not after seconds of imports."""
    from peftlab.store import STACK_SEPARATOR, Store

    return {name: [Store(store).resolve(part).task for part in name.split(STACK_SEPARATOR)][-1] for name in names}


def _names(adapters: str | None) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in (adapters or "").split(",") if name.strip()))


def _refuse_together(
    by: str | None, file: str | None, data_format: str, columns: dict[str, str], scheme: str | None, as_json: bool
) -> None:
    """Options that have nothing to work on, or that another one leaves nothing."""
    if scheme and as_json:
        raise click.UsageError("--conll and --json are two ways to print the same; give one of them.")
    if file and _is_table(file, data_format):
        return
    endings = ", ".join(TABLES)
    for option, given in (("--by", by), ("--column", columns), ("--format", data_format != "auto" and not file)):
        if given:
            raise click.UsageError(f"{option} is for rows with columns: give a {endings} with --file, or its --format.")


def _refuse_untagged(scheme: str | None, tasks: "dict[str, Task]") -> None:
    for name, task in tasks.items():
        if scheme and task.type != "token-classification":
            raise click.UsageError(f"{name} has no tags to print; --conll is for token classification.")


def _rows(
    texts: tuple[str, ...], file: str | None, data_format: str, columns: dict[str, str]
) -> "list[str] | list[Row]":
    if texts and file:
        raise click.UsageError("give texts as arguments or with --file, not both.")
    if texts:
        return list(texts)
    if file and _is_table(file, data_format):
        return _table_rows(file, data_format, columns)
    if file:
        return _lines(_file_text(Path(file)))
    if sys.stdin.isatty():
        raise click.UsageError("no text. Give it as an argument, with --file, or on standard input.")
    return _lines(sys.stdin.read())


def _is_table(file: str, data_format: str) -> bool:
    return data_format != "auto" or Path(file).suffix.lower() in TABLES


def _table_rows(file: str, data_format: str, columns: dict[str, str]) -> "list[Row]":
    from peftlab.data.loading import read_split

    with ErrorCollector() as errors:
        return read_split(_section(file, data_format, columns), file, errors, key="").rows


def _rows_by(
    by: str, file: str, data_format: str, columns: dict[str, str], store: str, errors: ErrorCollector
) -> "tuple[list[tuple[str, Any]], dict[str, Task]]":
    """The rows of a file with their adapters' names, and the tasks of these."""
    from peftlab.data.adapter_column import read_adapter_rows
    from peftlab.store import Store

    named = read_adapter_rows(_section(file, data_format, columns), file, by, errors, find=Store(store).resolve_version)
    return list(named), resolve_first(list(dict.fromkeys(name for name, _ in named)), store)


def _section(file: str, data_format: str, columns: dict[str, str]) -> DataSection:
    return DataSection.model_validate({"train": file, "format": data_format, "columns": columns})


def _context(context: str | None) -> str | None:
    return _file_text(Path(context[1:])).strip() if context and context.startswith("@") else context


def _file_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise click.UsageError(f"{file}: {reason}.") from None


def _with_context(row: Any, context: str | None, name: str, task: "Task") -> Any:
    """The row with the context under the name that the adapter's task has for it."""
    if context is None:
        return row
    first, *others = task.input_columns
    if not others:
        raise click.UsageError(f"--context is nothing that {name} ({task.type}) takes.")
    if isinstance(row, str):
        return {first: row, others[0]: context}
    return replace(row, fields={**row.fields, others[0]: context})


def _lines(content: str) -> list[str]:
    """One text a line, empty ones too, so that line n of the answer belongs to line n of the question."""
    return content.removesuffix("\n").split("\n") if content else []

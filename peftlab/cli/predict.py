"""`peftlab predict`."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from peftlab.cli.options import (
    columns_option,
    device_option,
    format_option,
    json_option,
    quantization_option,
    store_option,
    trust_option,
)

if TYPE_CHECKING:
    from peftlab.data import Row
    from peftlab.runtime import Bank

TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".conll")


@click.command()
@click.argument("adapters", metavar="ADAPTER[,ADAPTER…]")
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
@trust_option
def predict(
    adapters: str,
    texts: tuple[str, ...],
    context: str | None,
    file: str | None,
    data_format: str,
    columns: dict[str, str],
    scheme: str | None,
    as_json: bool,
    store: str,
    device: str,
    quantization: str | None,
    trust_remote_code: bool,
) -> None:
    """Run texts through one adapter, or through several on the same resident base.

    Texts come as arguments, from --file, or from standard input, one a line. ADAPTER is a name, or name@version.
    Relations are asked as "<e1>Ada</e1> founded <e2>Solwind</e2>." With --json, each row and adapter gives one line
    with `adapter`, what was asked, and the prediction.
    """
    rows = _rows(texts, file, data_format, columns)
    about = _context(context)
    names = list(dict.fromkeys(name.strip() for name in adapters.split(",") if name.strip()))
    resolve_first(names, store)

    from peftlab.cli.display import print_notes
    from peftlab.runtime import load

    settings: dict[str, Any] = {"quantization": quantization, "trust_remote_code": trust_remote_code}
    bank = load(*names, store=store, device=device, **settings)
    print_notes(bank.notes)
    chosen = [name for _ in rows for name in names]
    asked = [_with_context(row, about, name, bank) for row in rows for name in names]
    answers = bank.predict(asked, adapters=chosen)
    if as_json:
        for answer in answers:
            click.echo(json.dumps(answer.as_dict(), ensure_ascii=False))
        return
    from peftlab.cli.predictions import print_answers, print_conll

    if scheme:
        print_conll(answers, scheme)
    else:
        print_answers(answers, bank)


def resolve_first(names: list[str], store: str) -> None:
    """A wrong name is told at once, not after seconds of imports."""
    from peftlab.store import Store

    for name in names:
        Store(store).verify(name)


def _rows(
    texts: tuple[str, ...], file: str | None, data_format: str, columns: dict[str, str]
) -> "list[str] | list[Row]":
    if texts and file:
        raise click.UsageError("give texts as arguments or with --file, not both.")
    if texts:
        return list(texts)
    if file and (data_format != "auto" or Path(file).suffix.lower() in TABLES):
        return _table_rows(file, data_format, columns)
    if file:
        return _lines(_file_text(Path(file)))
    if sys.stdin.isatty():
        raise click.UsageError("no text. Give it as an argument, with --file, or on standard input.")
    return _lines(sys.stdin.read())


def _table_rows(file: str, data_format: str, columns: dict[str, str]) -> "list[Row]":
    from peftlab.data.loading import read_split
    from peftlab.errors import Problems
    from peftlab.recipe import DataSection

    with Problems() as problems:
        section = DataSection.model_validate({"train": file, "format": data_format, "columns": columns})
        return read_split(section, file, problems, key="").rows


def _context(context: str | None) -> str | None:
    return _file_text(Path(context[1:])).strip() if context and context.startswith("@") else context


def _file_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise click.UsageError(f"{file}: {reason}.") from None


def _with_context(row: "str | Row", context: str | None, name: str, bank: "Bank") -> Any:
    """The row with the context under the name that the adapter's task has for it."""
    if context is None:
        return row
    first, *others = bank.task(name).input_columns
    if not others:
        raise click.UsageError(f"--context is nothing that {name} ({bank.task(name).type}) takes.")
    if isinstance(row, str):
        return {first: row, others[0]: context}
    return replace(row, fields={**row.fields, others[0]: context})


def _lines(content: str) -> list[str]:
    """One text a line, empty ones too, so that line n of the answer belongs to line n of the question."""
    return content.removesuffix("\n").split("\n") if content else []

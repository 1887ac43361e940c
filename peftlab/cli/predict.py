"""`peftlab predict`."""

import json
import sys
from pathlib import Path

import click

from peftlab.cli.options import device_option, json_option, store_option


@click.command()
@click.argument("adapters", metavar="ADAPTER[,ADAPTER…]")
@click.argument("texts", metavar="[TEXT]…", nargs=-1)
@click.option(
    "--file",
    "-f",
    "file",
    metavar="FILE",
    help="Read texts from FILE, one a line, or `text` of each object of a .jsonl.",
)
@json_option
@store_option
@device_option
@click.option(
    "--trust-remote-code", is_flag=True, help="Run Python code that comes with the base, if an adapter needs it."
)
def predict(
    adapters: str,
    texts: tuple[str, ...],
    file: str | None,
    as_json: bool,
    store: str,
    device: str,
    trust_remote_code: bool,
) -> None:
    """Run texts through one adapter, or through several on the same resident base.

    Texts come as arguments, from --file, or from standard input, one a line. ADAPTER is a name, or name@version.
    With --json, each text and adapter gives one line with `adapter`, `text` and the prediction.
    """
    rows = _texts(texts, file)
    names = list(dict.fromkeys(name.strip() for name in adapters.split(",") if name.strip()))
    _resolve_first(names, store)

    from peftlab.runtime import load

    bank = load(*names, store=store, device=device, trust_remote_code=trust_remote_code)
    chosen = [name for _ in rows for name in names]
    answers = bank.predict([text for text in rows for _ in names], adapters=chosen)
    if as_json:
        for answer in answers:
            click.echo(json.dumps(answer.as_dict(), ensure_ascii=False))
        return
    from peftlab.cli.display import print_answers

    print_answers(answers, bank)


def _resolve_first(names: list[str], store: str) -> None:
    """A wrong name is told at once, not after seconds of imports."""
    from peftlab.store import Store

    for name in names:
        Store(store).verify(name)


def _texts(texts: tuple[str, ...], file: str | None) -> list[str]:
    if texts and file:
        raise click.UsageError("give texts as arguments or with --file, not both.")
    if texts:
        return list(texts)
    if file:
        return _file_texts(Path(file))
    if sys.stdin.isatty():
        raise click.UsageError("no text. Give it as an argument, with --file, or on standard input.")
    return _lines(sys.stdin.read())


def _file_texts(file: Path) -> list[str]:
    try:
        content = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise click.UsageError(f"{file}: {reason}.") from None
    if file.suffix != ".jsonl":
        return _lines(content)
    return [
        _jsonl_text(line, f"{file}:{number}") for number, line in enumerate(content.splitlines(), 1) if line.strip()
    ]


def _jsonl_text(line: str, where: str) -> str:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise click.UsageError(f"{where}: expected a JSON object; {error.msg} at column {error.colno}.") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
        raise click.UsageError(f"{where}: expected an object with a string under `text`.")
    return str(fields["text"])


def _lines(content: str) -> list[str]:
    """One text a line, empty ones too, so that line n of the answer belongs to line n of the question."""
    return content.removesuffix("\n").split("\n") if content else []

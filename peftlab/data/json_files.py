"""JSON: one object a line (.jsonl), one list of objects, or SQuAD's nesting of articles, paragraphs and questions."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peftlab.data.rows import Row, RowError

_BLANKS = re.compile(r"[\s,]*")


def read_jsonl(path: Path, encoding: str, header: Sequence[str] | None) -> Iterator[Row | RowError]:
    """Rows with whatever fields the objects have."""
    with path.open(encoding=encoding) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _parsed(line, f"{path}:{number}")


def _parsed(line: str, where: str) -> Row | RowError:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        return RowError(f"{where}: expected one JSON object on this line; {error.msg} at column {error.colno}")
    return _row(fields, where)


def _row(fields: Any, where: str) -> Row | RowError:
    if not isinstance(fields, dict):
        return RowError(f"{where}: expected a JSON object, found {type(fields).__name__}")
    return Row(fields, where)


def read_json(path: Path, encoding: str, header: Sequence[str] | None) -> Iterator[Row | RowError]:
    """Rows of a file that is one list of objects; a row's place is the line it begins at."""
    text = path.read_text(encoding=encoding)
    position = _BLANKS.match(text).end()  # type: ignore[union-attr]  # it matches everywhere
    if text[position : position + 1] != "[":
        yield RowError(
            f"{path}:1: expected a list of objects, [{{…}}, {{…}}], found {text[position : position + 20]!r}"
        )
        return
    position = _BLANKS.match(text, position + 1).end()  # type: ignore[union-attr]
    while position < len(text) and text[position] != "]":
        where = f"{path}:{_line(text, position)}"
        try:
            fields, position = json.JSONDecoder().raw_decode(text, position)
        except json.JSONDecodeError as error:
            yield RowError(f"{path}:{error.lineno}: expected JSON; {error.msg} at column {error.colno}")
            return
        yield _row(fields, where)
        position = _BLANKS.match(text, position).end()  # type: ignore[union-attr]
    if position >= len(text):
        yield RowError(f"{path}:{_line(text, position)}: expected ] at the end of the list")


def read_squad(path: Path, encoding: str, header: Sequence[str] | None) -> Iterator[Row | RowError]:
    """Rows with `id`, `title`, `context`, `question` and `answers`; a row's place is the line of its id."""
    text = path.read_text(encoding=encoding)
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        yield RowError(f"{path}:{error.lineno}: expected JSON; {error.msg} at column {error.colno}")
        return
    if not (isinstance(document, dict) and isinstance(document.get("data"), list)):
        yield RowError(f"{path}:1: expected SQuAD's {{version, data: [{{title, paragraphs}}]}}")
        return
    for n, article in enumerate(document["data"], start=1):
        yield from _article_rows(article, f"article {n}", path, text)


def _article_rows(article: Any, name: str, path: Path, text: str) -> Iterator[Row | RowError]:
    paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
    if not isinstance(paragraphs, list):
        yield RowError(f"{path}: {name}: expected {{title, paragraphs: […]}}")
        return
    for n, paragraph in enumerate(paragraphs, start=1):
        questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
        if not isinstance(questions, list) or not all(isinstance(asked, dict) for asked in questions):
            yield RowError(f"{path}: {name}, paragraph {n}: expected {{context, qas: [{{id, question, answers}}]}}")
            continue
        shared = {name: value for name, value in paragraph.items() if name != "qas"}
        for asked in questions:
            fields = {"title": article.get("title", ""), **shared, **asked}
            if fields.get("is_impossible") is True:
                fields["answers"] = []
            yield Row(fields, f"{path}:{_line_of_id(text, asked.get('id'))}")


def _line_of_id(text: str, wanted: Any) -> str:
    """The line at which a question's id stands, and the id where a whole file is one line."""
    found = re.search(rf'"id"\s*:\s*{re.escape(json.dumps(wanted))}', text)
    line = _line(text, found.start()) if found else 1
    return f"{line}" if "\n" in text.strip() else f"{line} (question {wanted})"


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1

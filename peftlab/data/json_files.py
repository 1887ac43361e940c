"""JSON: one object a line (.jsonl), one list of objects, or SQuAD's nesting of articles, paragraphs and questions."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peftlab.data.rows import Row, RowError

_BLANKS = re.compile(r"[\s,]*")
_ID = re.compile(r'"id"\s*:\s*("(?:[^"\\]|\\.)*"|-?\d+)')


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
    except RecursionError:
        return RowError(f"{where}: expected one JSON object on this line; it is nested too deeply")
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
    lines = _Lines(text)
    while position < len(text) and text[position] != "]":
        where = f"{path}:{lines.at(position)}"
        try:
            fields, position = json.JSONDecoder().raw_decode(text, position)
        except json.JSONDecodeError as error:
            yield RowError(f"{path}:{error.lineno}: expected JSON; {error.msg} at column {error.colno}")
            return
        except RecursionError:
            yield RowError(f"{where}: expected JSON objects; it is nested too deeply")
            return
        yield _row(fields, where)
        position = _BLANKS.match(text, position).end()  # type: ignore[union-attr]
    if position >= len(text):
        yield RowError(f"{path}:{lines.at(position)}: expected ] at the end of the list")
    elif rest := text[position + 1 :].lstrip():
        yield RowError(
            f"{path}:{lines.at(len(text) - len(rest))}: expected nothing after the list, found {rest[:20]!r}"
        )


def read_squad(path: Path, encoding: str, header: Sequence[str] | None) -> Iterator[Row | RowError]:
    """Rows with `id`, `title`, `context`, `question` and `answers`; a row's place is the line of its id."""
    text = path.read_text(encoding=encoding)
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        yield RowError(f"{path}:{error.lineno}: expected JSON; {error.msg} at column {error.colno}")
        return
    except RecursionError:
        yield RowError(
            f"{path}:1: expected SQuAD's {{version, data: [{{title, paragraphs}}]}}; it is nested too deeply"
        )
        return
    if not (isinstance(document, dict) and isinstance(document.get("data"), list)):
        yield RowError(f"{path}:1: expected SQuAD's {{version, data: [{{title, paragraphs}}]}}")
        return
    places = _Ids(text)
    for n, article in enumerate(document["data"], start=1):
        yield from _article_rows(article, f"article {n}", path, places)


def _article_rows(article: Any, name: str, path: Path, places: "_Ids") -> Iterator[Row | RowError]:
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
            yield Row(fields, f"{path}:{places.next_place(asked.get('id'))}")


class _Lines:
    """Line numbers of positions in a text that only grow, so that a large file is counted once."""

    def __init__(self, text: str) -> None:
        self._text, self._position, self._line = text, 0, 1

    def at(self, position: int) -> int:
        """The line of `position`, which is not before the last one asked for."""
        self._line += self._text.count("\n", self._position, position)
        self._position = position
        return self._line


class _Ids:
    """The lines at which the questions' ids stand, in one pass."""

    def __init__(self, text: str) -> None:
        lines = _Lines(text)
        self._one_line = "\n" not in text.strip()
        self._lines: dict[str, list[int]] = {}
        for found in _ID.finditer(text):
            self._lines.setdefault(json.dumps(json.loads(found[1])), []).append(lines.at(found.start()))
        for places in self._lines.values():
            places.reverse()

    def next_place(self, wanted: Any) -> str:
        """The line of an id's next occurrence, and the id where a whole file is one line."""
        places = self._lines.get(json.dumps(wanted))
        line = 1 if not places else places.pop() if len(places) > 1 else places[0]
        return f"{line} (question {wanted})" if self._one_line else f"{line}"

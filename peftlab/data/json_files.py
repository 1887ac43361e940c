"""JSON files: one object per line (.jsonl), one list of objects, or SQuAD's articles, paragraphs and questions."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peftlab.data.rows import Row, RowError, find_surrogate

_BLANKS = re.compile(r"[\s,]*")
_DATA = re.compile(r'"data"\s*:\s*\[')
_ID = re.compile(r'"id"\s*:\s*("(?:[^"\\]|\\.)*"|-?\d+)')


def read_jsonl(path: Path, encoding: str, header: Sequence[str] | None) -> Iterator[Row | RowError]:
    """Rows with the fields of each object."""
    with path.open(encoding=encoding) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _parse_line(line, f"{path}:{number}")


def _parse_line(line: str, where: str) -> Row | RowError:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        return RowError(f"{where}: expected one JSON object on this line; {error.msg} at column {error.colno}")
    except RecursionError:
        return RowError(f"{where}: expected one JSON object on this line; its nesting is too deep")
    return _build_row(fields, where)


def _build_row(fields: Any, where: str) -> Row | RowError:
    if not isinstance(fields, dict):
        return RowError(f"{where}: expected a JSON object, found {type(fields).__name__}")
    if invalid := find_surrogate(fields):
        return RowError(f"{where}: expected text; found {invalid}, which is half of a character (a surrogate)")
    return Row(fields, where)


def read_json(path: Path, encoding: str, header: Sequence[str] | None) -> Iterator[Row | RowError]:
    """Rows of a file that is one list of objects, alone or under `data` of an object; `where` is the line where the
    object starts."""
    text = path.read_text(encoding=encoding)
    wrapped = _DATA.search(text) if text.lstrip().startswith("{") else None
    position = wrapped.end() - 1 if wrapped else _BLANKS.match(text).end()  # type: ignore[union-attr]  # always matches
    if text[position : position + 1] != "[":
        yield RowError(
            f"{path}:1: expected a list of objects, [{{…}}, {{…}}], found {text[position : position + 20]!r}"
        )
        return
    position = _BLANKS.match(text, position + 1).end()  # type: ignore[union-attr]
    lines = _LineCounter(text)
    while position < len(text) and text[position] != "]":
        where = f"{path}:{lines.at(position)}"
        try:
            fields, position = json.JSONDecoder().raw_decode(text, position)
        except json.JSONDecodeError as error:
            yield RowError(f"{path}:{error.lineno}: expected JSON; {error.msg} at column {error.colno}")
            return
        except RecursionError:
            yield RowError(f"{where}: expected JSON objects; the nesting is too deep")
            return
        yield _build_row(fields, where)
        position = _BLANKS.match(text, position).end()  # type: ignore[union-attr]
    if position >= len(text):
        yield RowError(f"{path}:{lines.at(position)}: expected ] at the end of the list")
    elif not wrapped and (rest := text[position + 1 :].lstrip()):
        yield RowError(
            f"{path}:{lines.at(len(text) - len(rest))}: expected nothing after the list, found {rest[:20]!r}"
        )


def read_squad(path: Path, encoding: str, header: Sequence[str] | None) -> Iterator[Row | RowError]:
    """Rows with `id`, `title`, `context`, `question` and `answers`; `where` is the line of the question's id."""
    text = path.read_text(encoding=encoding)
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        yield RowError(f"{path}:{error.lineno}: expected JSON; {error.msg} at column {error.colno}")
        return
    except RecursionError:
        yield RowError(
            f"{path}:1: expected SQuAD's {{version, data: [{{title, paragraphs}}]}}; the nesting is too deep"
        )
        return
    if not (isinstance(document, dict) and isinstance(document.get("data"), list)):
        yield RowError(f"{path}:1: expected SQuAD's {{version, data: [{{title, paragraphs}}]}}")
        return
    places = _QuestionLines(text)
    for n, article in enumerate(document["data"], start=1):
        yield from _article_rows(article, f"article {n}", path, places)


def _article_rows(article: Any, name: str, path: Path, places: "_QuestionLines") -> Iterator[Row | RowError]:
    paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
    if not isinstance(paragraphs, list):
        yield RowError(f"{path}: {name}: expected {{title, paragraphs: […]}}")
        return
    for n, paragraph in enumerate(paragraphs, start=1):
        questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
        if not isinstance(questions, list) or not all(isinstance(question, dict) for question in questions):
            yield RowError(f"{path}: {name}, paragraph {n}: expected {{context, qas: [{{id, question, answers}}]}}")
            continue
        shared = {name: value for name, value in paragraph.items() if name != "qas"}
        for question in questions:
            fields = {"title": article.get("title", ""), **shared, **question}
            if fields.get("is_impossible") is True:
                fields["answers"] = []
            yield Row(fields, f"{path}:{places.next_location(question.get('id'))}")


class _LineCounter:
    """Converts positions in a text to line numbers. Positions must not decrease, so that the text is read once."""

    def __init__(self, text: str) -> None:
        self._text, self._position, self._line = text, 0, 1

    def at(self, position: int) -> int:
        """The line of `position`, which must not be before the position of the last call."""
        self._line += self._text.count("\n", self._position, position)
        self._position = position
        return self._line


class _QuestionLines:
    """The line of each question's id, found in one pass over the text."""

    def __init__(self, text: str) -> None:
        lines = _LineCounter(text)
        self._one_line = "\n" not in text.strip()
        self._lines: dict[str, list[int]] = {}
        for found in _ID.finditer(text):
            self._lines.setdefault(json.dumps(json.loads(found[1])), []).append(lines.at(found.start()))
        for places in self._lines.values():
            places.reverse()

    def next_location(self, wanted: Any) -> str:
        """The line of the id's next occurrence; the id is added if the file has only one line."""
        places = self._lines.get(json.dumps(wanted))
        line = 1 if not places else places.pop() if len(places) > 1 else places[0]
        return f"{line} (question {wanted})" if self._one_line else f"{line}"

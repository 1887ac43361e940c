r"""Inline markup that anyone can write by hand: `[Ada Lovelace](PER) lived in [London](LOC).`, one row a line.

A bracket that is only a bracket is written `\[` or `\]`, a backslash `\\`. Blank lines are passed over.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from peftlab.data.rows import Row, RowError

_PIECE = re.compile(
    r"\\(?P<escaped>[\[\]\\])|\[(?P<entity>(?:[^\[\]\\]|\\[\[\]\\])+)\]\((?P<label>[^()\s]+)\)|(?P<bare>[\[\]])"
)


def read_markup(path: Path, encoding: str, header: Sequence[str] | None) -> Iterator[Row | RowError]:
    """Rows with `text` and `entities` ({start, end, label}, in characters)."""
    with path.open(encoding=encoding) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _parsed(line.rstrip("\r\n"), f"{path}:{number}")


def _parsed(line: str, where: str) -> Row | RowError:
    try:
        text, entities = parse_markup(line)
    except RowError as error:
        return RowError(f"{where}: {error}")
    return Row({"text": text, "entities": entities}, where)


def parse_markup(line: str) -> tuple[str, list[dict[str, Any]]]:
    """One line of markup → its plain text and the entities in it.

    Raises:
        RowError: a bracket that is neither part of an entity nor escaped.
    """
    text, entities, end = "", [], 0
    for piece in _PIECE.finditer(line):
        text += line[end : piece.start()]
        end = piece.end()
        if piece["bare"]:
            raise RowError(
                f"column {piece.start() + 1}: expected [words](LABEL), or \\{piece['bare']} for a bracket in the text, "
                f"found '{line[piece.start() : piece.start() + 30]}'"
            )
        words = piece["escaped"] or _unescape(piece["entity"])
        if piece["label"]:
            entities.append({"start": len(text), "end": len(text) + len(words), "label": piece["label"]})
        text += words
    return text + line[end:], entities


def write_markup(text: str, entities: Iterable[tuple[int, int, str]]) -> str:
    """The inverse of `parse_markup`, for (start, end, label) in order and without overlap."""
    line, end = "", 0
    for start, stop, label in entities:
        line += f"{_escape(text[end:start])}[{_escape(text[start:stop])}]({label})"
        end = stop
    return line + _escape(text[end:])


def _escape(text: str) -> str:
    return re.sub(r"([\[\]\\])", r"\\\1", text)


def _unescape(text: str) -> str:
    return re.sub(r"\\([\[\]\\])", r"\1", text)

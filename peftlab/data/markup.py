r"""Inline markup that anyone can write by hand: `[Ada Lovelace](PER) lived in [London](LOC).`, one row a line.

Write a bracket of the text as `\[` or `\]`, a backslash as `\\`. Blank lines are skipped.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from peftlab.data.rows import Row, RowError

_MARKUP = re.compile(
    r"\\(?P<escaped>[\[\]\\])|\[(?P<entity>(?:[^\[\]\\]|\\[\[\]\\])+)\]\((?P<label>[^()\s]+)\)|(?P<bare>[\[\]])"
)


def read_markup(path: Path, encoding: str, header: Sequence[str] | None) -> Iterator[Row | RowError]:
    """Rows with `text` and `entities` ({start, end, label}, in characters)."""
    with path.open(encoding=encoding) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _parse_line(line.rstrip("\r\n"), f"{path}:{number}")


def _parse_line(line: str, where: str) -> Row | RowError:
    try:
        text, entities = parse_markup(line)
    except RowError as error:
        return RowError(f"{where}: {error}")
    return Row({"text": text, "entities": entities}, where)


def parse_markup(line: str) -> tuple[str, list[dict[str, Any]]]:
    """Parse one line of markup into its plain text and the entities in it.

    Raises:
        RowError: a bracket is neither part of an entity nor escaped.
    """
    text, entities, end = "", [], 0
    for match in _MARKUP.finditer(line):
        text += line[end : match.start()]
        end = match.end()
        if match["bare"]:
            raise RowError(
                f"column {match.start() + 1}: expected [words](LABEL), or \\{match['bare']} for a bracket in the text, "
                f"found '{line[match.start() : match.start() + 30]}'"
            )
        words = match["escaped"] or _unescape(match["entity"])
        if match["label"]:
            entities.append({"start": len(text), "end": len(text) + len(words), "label": match["label"]})
        text += words
    return text + line[end:], entities


def write_markup(text: str, entities: Iterable[tuple[int, int, str]]) -> str:
    """The inverse of `parse_markup`; entities are (start, end, label), sorted and without overlap."""
    line, end = "", 0
    for start, stop, label in entities:
        line += f"{_escape(text[end:start])}[{_escape(text[start:stop])}]({label})"
        end = stop
    return line + _escape(text[end:])


def _escape(text: str) -> str:
    return re.sub(r"([\[\]\\])", r"\\\1", text)


def _unescape(text: str) -> str:
    return re.sub(r"\\([\[\]\\])", r"\1", text)

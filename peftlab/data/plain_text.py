"""Plain text files: one row per line, or one row per paragraph. Blank lines separate rows."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from peftlab.data.rows import Row, RowError


def read_lines(path: Path, encoding: str, header: Sequence[str] | None) -> Iterator[Row | RowError]:
    """Rows with `text`, one per line."""
    with path.open(encoding=encoding) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield Row({"text": line.rstrip("\r\n")}, f"{path}:{number}")


def read_paragraphs(path: Path, encoding: str, header: Sequence[str] | None) -> Iterator[Row | RowError]:
    """Rows with `text`, one per paragraph. A blank line ends it; line breaks inside are kept."""
    with path.open(encoding=encoding) as lines:
        for blank, group in groupby(enumerate(lines, start=1), lambda line: not line[1].strip()):
            if not blank:
                numbers, texts = zip(*group, strict=True)
                yield Row({"text": "".join(texts).rstrip("\r\n")}, f"{path}:{numbers[0]}")

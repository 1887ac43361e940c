"""CoNLL files: one token a line with its tag in the last column, a blank line between sentences.

Columns are separated by tabs, or else by spaces. `-DOCSTART-` lines separate documents and hold no token.
"""

from collections.abc import Iterator
from pathlib import Path

from peftlab.data.rows import Row, RowError


def read_conll(path: Path) -> Iterator[Row | RowError]:
    """Rows with `tokens` and `tags`; a row's place is the line of its first token."""
    tokens: list[str] = []
    tags: list[str] = []
    first = 0
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.startswith("-DOCSTART-"):
                if tokens:
                    yield Row({"tokens": tokens, "tags": tags}, f"{path}:{first}")
                    tokens, tags = [], []
                continue
            columns = split_columns(line)
            if len(columns) < 2:
                yield RowError(f"{path}:{number}: expected a token, a tab or space, and a tag; found {line.strip()!r}")
                continue
            first = first if tokens else number
            tokens.append(columns[0])
            tags.append(columns[-1])
    if tokens:
        yield Row({"tokens": tokens, "tags": tags}, f"{path}:{first}")


def split_columns(line: str) -> list[str]:
    """The columns of one line: by tabs where it has any, otherwise by spaces."""
    line = line.rstrip("\r\n")
    columns = line.split("\t") if "\t" in line.strip() else line.split()
    return [column.strip() for column in columns if column.strip()]

"""CoNLL files: one token a line with its tag in the last column, a blank line between sentences.

Columns are separated by tabs, or else by spaces. `-DOCSTART-` lines separate documents and hold no token. A line such
as `# label = founded` before the first token of a sentence adds a field to its row, as in CoNLL-U.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from peftlab.data.rows import Row, RowError

_FIELD = re.compile(r"#\s*(\w+)\s*=\s*(.*\S)\s*")


def read_conll(path: Path, encoding: str, header: Sequence[str] | None) -> Iterator[Row | RowError]:
    """Rows with `tokens` and `tags`; `where` is the line of its first token."""
    fields: dict[str, str] = {}
    tokens: list[str] = []
    tags: list[str] = []
    first = 0
    with path.open(encoding=encoding) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.startswith("-DOCSTART-"):
                if tokens:
                    yield Row({**fields, "tokens": tokens, "tags": tags}, f"{path}:{first}")
                    fields, tokens, tags = {}, [], []
                continue
            if not tokens and (field := _FIELD.fullmatch(line.strip())) and "\t" not in line:
                fields[field[1]] = field[2]
                continue
            columns = split_columns(line)
            if len(columns) < 2:
                yield RowError(f"{path}:{number}: expected a token, a tab or space, and a tag; found {line.strip()!r}")
                continue
            first = first if tokens else number
            tokens.append(columns[0])
            tags.append(columns[-1])
    if tokens:
        yield Row({**fields, "tokens": tokens, "tags": tags}, f"{path}:{first}")


def split_columns(line: str) -> list[str]:
    """Split a line into columns at its tabs, or at spaces if it has no tab."""
    line = line.rstrip("\r\n")
    columns = line.split("\t") if "\t" in line.strip() else line.split()
    return [column.strip() for column in columns if column.strip()]

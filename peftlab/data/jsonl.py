"""JSON Lines: one object a line."""

import json
from collections.abc import Iterator
from pathlib import Path

from peftlab.data.rows import Row, RowError


def read_jsonl(path: Path) -> Iterator[Row | RowError]:
    """Rows with whatever fields the objects have."""
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _parsed(line, f"{path}:{number}")


def _parsed(line: str, where: str) -> Row | RowError:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        return RowError(f"{where}: expected one JSON object on this line; {error.msg} at column {error.colno}")
    if not isinstance(fields, dict):
        return RowError(f"{where}: expected a JSON object, found {type(fields).__name__}")
    return Row(fields, where)

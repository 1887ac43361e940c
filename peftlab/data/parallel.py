"""Parallel text files, as translations are stored: line n of one belongs to line n of the other, `train.{en,de}`."""

import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from peftlab.data.rows import Row, RowError

_BRACES = re.compile(r"\{([^{},]+),([^{},]+)\}")
COLUMNS = ("text", "translation")


def parallel_paths(path: Path) -> tuple[Path, Path] | None:
    """The two files that a name with one pair of braces expands to, as in a shell; None for any other name."""
    found = _BRACES.search(path.name)
    if found is None:
        return None
    before, after = path.name[: found.start()], path.name[found.end() :]
    first, second = (path.with_name(f"{before}{part}{after}") for part in found.groups())
    return first, second


def read_parallel(paths: tuple[Path, Path], encoding: str) -> Iterator[Row | RowError]:
    """One row per line: `text` from the first file, `translation` from the second. Pairs of blank lines are skipped."""
    first, second = paths
    with first.open(encoding=encoding) as texts, second.open(encoding=encoding) as translations:
        for number, pair in enumerate(zip_longest(texts, translations), start=1):
            shorter = next((path for path, line in zip(paths, pair, strict=True) if line is None), None)
            if shorter is not None:
                yield RowError(f"{shorter}:{number}: expected as many lines in {first.name} as in {second.name}")
                return
            lines = [line.rstrip("\r\n") for line in pair]
            if any(line.strip() for line in lines):
                yield Row(dict(zip(COLUMNS, lines, strict=True)), f"{first}:{number}")

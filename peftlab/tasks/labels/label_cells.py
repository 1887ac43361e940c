"""Several labels in one cell of a table, as in `roads|parks`, `roads; parks` or `roads, parks`."""

import csv
import re
from collections.abc import Iterable, Sequence
from typing import Any

from peftlab.data.rows import RowError

SEPARATORS = ("|", ";", ",")
"""In this order: names hold a comma more often than a semicolon, and hardly ever a bar."""
_ATOM = re.compile(r"[|;,]")


def find_separator(cells: Iterable[Any]) -> str | None:
    """The separator of a column of cells: the first of `|`, `;` and `,` that any of them holds; None if none does."""
    texts = [cell for cell in cells if isinstance(cell, str) and not cell.lstrip().startswith("[")]
    return next((separator for separator in SEPARATORS if any(separator in text for text in texts)), None)


def split_labels(cell: str, known: Sequence[str], separator: str | None = None) -> list[str]:
    """The labels in a cell; a name in double quotes may hold the separator.

    If `known` lists the labels, a name there is never split. `separator` is that of the column; None finds that of this
    cell.

    Raises:
        RowError: quotes are not closed.
    """
    if known and (names := _match_known(cell, set(known))) is not None:
        return names
    separator = separator or find_separator([cell]) or ","
    try:
        [parts] = csv.reader([cell], delimiter=separator, skipinitialspace=True, strict=True) if cell else [[]]
    except (csv.Error, ValueError) as error:
        raise RowError(f"expected labels separated by {separator}, found {cell!r} ({error})") from None
    return [part.strip() for part in parts if part.strip()]


def _match_known(cell: str, known: set[str]) -> list[str] | None:
    """The known labels that a cell holds, the longest first at each place; None if a part is not known."""
    names, start = [], 0
    while start < len(cell):
        ends = [match.start() for match in _ATOM.finditer(cell, start)] + [len(cell)]
        end = next((end for end in reversed(ends) if cell[start:end].strip() in known), None)
        if end is None:
            end = ends[0]
            if cell[start:end].strip():
                return None
        else:
            names.append(cell[start:end].strip())
        start = end + 1
    return names

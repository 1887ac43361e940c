"""Tables with one word a row: consecutive rows of a sentence become one row of lists."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from peftlab.data.rows import Row
from peftlab.errors import ErrorCollector, suggest

KEY = "data.group_by"


def group_rows(rows: Sequence[Row], column: str, errors: ErrorCollector) -> list[Row]:
    """One row for each run of rows with the same value in `column`; every other column becomes a list.

    An empty cell continues the sentence before it. A value that comes back after another one is an error.
    """
    if rows and not any(column in row.fields for row in rows):
        available = dict.fromkeys(name for row in rows for name in row.fields)
        errors.add(
            f"no column '{column}' in {rows[0].where}.",
            key=KEY,
            hint=suggest(column, available, what="Available columns"),
        )
        return []
    groups = [[row for row, _ in group] for _, group in groupby(_with_values(rows, column), lambda pair: pair[1])]
    seen: dict[Any, str] = {}
    for group in groups:
        value = str(group[0].fields.get(column))
        if value in seen:
            message = f"{column} {value!r} is here again, after other rows; first at {seen[value]}."
            errors.add(
                message, key=KEY, where=group[0].where, hint="Sort the rows by sentence, or make the ids unique."
            )
            return []
        seen[value] = group[0].where
    return [_merge(group, column) for group in groups]


def _with_values(rows: Sequence[Row], column: str) -> list[tuple[Row, Any]]:
    """Each row with the value of its sentence."""
    pairs, current = [], None
    for row in rows:
        value = row.fields.get(column)
        if not (value is None or value == "" or value != value):  # NaN stands for an empty cell in Parquet
            current = str(value).strip() or current
        pairs.append((row, current))
    return pairs


def _merge(group: Sequence[Row], column: str) -> Row:
    names = dict.fromkeys(name for row in group for name in row.fields if name != column)
    fields = {name: [row.fields.get(name) for row in group] for name in names}
    return Row({column: group[0].fields.get(column), **fields}, group[0].where)

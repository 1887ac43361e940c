"""Rows of several adapters in one file: a column of each row names its adapter."""

from collections.abc import Callable, Iterable
from pathlib import Path

from peftlab.data.loading import add_invalid_rows, read_split
from peftlab.data.rows import Row, RowError
from peftlab.errors import ErrorCollector, NotFoundError, suggest
from peftlab.recipe import DataSection

AdapterRow = tuple[str, Row]
"""The adapter's name, and its row without the column that held it."""
TABLES = ("csv", "tsv", "parquet")  # in which a row has a cell for every column of the file
EMPTY = ("", None)


def read_adapter_rows(
    section: DataSection, source: str, by: str, errors: ErrorCollector, *, find: Callable[[str], object]
) -> list[AdapterRow]:
    """The rows of a file, each with the adapter that its column `by` names, in order.

    A row without that column, and a name for which `find` raises NotFoundError, are left out and added to `errors`.
    In a table, a column that an adapter leaves empty in all of its rows is none of its columns.
    """
    split = read_split(section, source, errors, key="")
    named, broken = [], []
    for row in split.rows:
        try:
            named.append(_named(row, by))
        except RowError as error:
            broken.append((row.where, str(error)))
    add_invalid_rows(broken, errors, read=len(split.rows))
    known = _known(named, find, errors)
    named = [(name, row) for name, row in named if name in known]
    return _without_empty_columns(named) if _is_table(section, source) else named


def _named(row: Row, by: str) -> AdapterRow:
    if by not in row.fields:
        found = suggest(by, row.fields, what="Columns there")
        raise RowError(f"no column '{by}', which should name the adapter of the row. {found}")
    name = row.fields[by]
    if not (isinstance(name, str) and name.strip()):
        raise RowError(f"expected {by} to name an adapter, found {name!r}")
    return name.strip(), Row({column: value for column, value in row.fields.items() if column != by}, row.where)


def _known(named: Iterable[AdapterRow], find: Callable[[str], object], errors: ErrorCollector) -> set[str]:
    """The names that mean something; each of the others is a problem, told with its first row."""
    places: dict[str, list[str]] = {}
    for name, row in named:
        places.setdefault(name, []).append(row.where)
    known = set()
    for name, wheres in places.items():
        try:
            find(name)
            known.add(name)
        except NotFoundError as error:
            hint = f"{len(wheres):,} rows name it; this is the first." if len(wheres) > 1 else ""
            errors.add(str(error), where=wheres[0], hint=hint)
    return known


def _is_table(section: DataSection, source: str) -> bool:
    ending = Path(source).suffix.lower().removeprefix(".")
    return (ending if section.format == "auto" else section.format) in TABLES


def _without_empty_columns(named: list[AdapterRow]) -> list[AdapterRow]:
    filled: dict[str, set[str]] = {}
    for name, row in named:
        used = (column for column, value in row.fields.items() if value not in EMPTY)
        filled.setdefault(name, set()).update(used)
    return [(name, Row({c: row.fields[c] for c in row.fields if c in filled[name]}, row.where)) for name, row in named]

"""Read files whose rows belong to several adapters: one column names the adapter of each row."""

from collections.abc import Callable, Iterable
from pathlib import Path

from peftlab.data.loading import add_invalid_rows, read_split
from peftlab.data.rows import Row, RowError
from peftlab.errors import ErrorCollector, NotFoundError, suggest
from peftlab.recipe import DataSection

AdapterRow = tuple[str, Row]
"""The adapter's name, and the row without the column that names it."""
TABLE_FORMATS = ("csv", "tsv", "parquet")  # every row has a cell for every column
EMPTY_CELLS = ("", None)


def read_adapter_rows(
    section: DataSection, source: str, adapter_column: str, errors: ErrorCollector, *, resolve: Callable[[str], object]
) -> list[AdapterRow]:
    """Read the rows of a file, each with the adapter that the column `adapter_column` names, in order.

    Rows without that column, and rows with a name for which `resolve` raises NotFoundError, are left out and added to
    `errors`. In a table, a column that is empty in all rows of an adapter is removed from these rows.
    """
    split = read_split(section, source, errors, key="")
    adapter_rows, invalid = [], []
    for row in split.rows:
        try:
            adapter_rows.append(_split_off_adapter(row, adapter_column))
        except RowError as error:
            invalid.append((row.where, str(error)))
    add_invalid_rows(invalid, errors, read=len(split.rows))
    known = _resolvable_names(adapter_rows, resolve, errors)
    adapter_rows = [(name, row) for name, row in adapter_rows if name in known]
    return _without_empty_columns(adapter_rows) if _is_table(section, source) else adapter_rows


def _split_off_adapter(row: Row, adapter_column: str) -> AdapterRow:
    if adapter_column not in row.fields:
        found = suggest(adapter_column, row.fields, what="Available columns")
        raise RowError(f"no column '{adapter_column}', which should name the adapter of the row. {found}")
    name = row.fields[adapter_column]
    if isinstance(name, list) and all(item == name[0] for item in name):
        name = name[0]  # the words of a sentence, by data.group_by
    if not (isinstance(name, str) and name.strip()):
        raise RowError(f"expected {adapter_column} to name an adapter, found {name!r}")
    return name.strip(), Row(
        {column: value for column, value in row.fields.items() if column != adapter_column}, row.where
    )


def _resolvable_names(
    adapter_rows: Iterable[AdapterRow], resolve: Callable[[str], object], errors: ErrorCollector
) -> set[str]:
    """The names that `resolve` accepts. Each other name is recorded once, with its first row."""
    first_locations: dict[str, list[str]] = {}
    for name, row in adapter_rows:
        first_locations.setdefault(name, []).append(row.where)
    known = set()
    for name, locations in first_locations.items():
        try:
            resolve(name)
            known.add(name)
        except NotFoundError as error:
            hint = f"{len(locations):,} rows name it; this is the first." if len(locations) > 1 else ""
            errors.add(str(error), where=locations[0], hint=hint)
    return known


def _is_table(section: DataSection, source: str) -> bool:
    suffix = Path(source).suffix.lower().removeprefix(".")
    return (suffix if section.format == "auto" else section.format) in TABLE_FORMATS


def _without_empty_columns(adapter_rows: list[AdapterRow]) -> list[AdapterRow]:
    used_columns: dict[str, set[str]] = {}
    for name, row in adapter_rows:
        nonempty = (column for column, value in row.fields.items() if value not in EMPTY_CELLS)
        used_columns.setdefault(name, set()).update(nonempty)
    return [
        (name, Row({c: row.fields[c] for c in row.fields if c in used_columns[name]}, row.where))
        for name, row in adapter_rows
    ]

"""Tables: CSV and TSV by Python's `csv`, which gives line numbers; Parquet files and Hub datasets by `datasets`."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.data.rows import Row, RowError
from peftlab.errors import NotFoundError
from peftlab.imports import datasets

if TYPE_CHECKING:
    from datasets import Dataset

MAX_CELL_LENGTH = 2**31 - 1
"""Characters in a cell; Python's own limit is 131,072."""
_NAMES_HINT = "name every column in the first line, or name them by data.header if the first line is a row"


def read_csv(path: Path, encoding: str, header: Sequence[str] | None) -> Iterator[Row | RowError]:
    """Rows of a comma-separated file. `header`, or else the first line, names the columns. Cells are strings."""
    with path.open(encoding=encoding, newline="") as lines:
        yield from _read_table(path, csv.reader(lines, strict=True), header)


def read_tsv(path: Path, encoding: str, header: Sequence[str] | None) -> Iterator[Row | RowError]:
    """Rows of a tab-separated file. Quotes have no special meaning in it."""
    with path.open(encoding=encoding, newline="") as lines:
        yield from _read_table(path, csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), header)


def _read_table(path: Path, reader: Any, header: Sequence[str] | None) -> Iterator[Row | RowError]:
    csv.field_size_limit(MAX_CELL_LENGTH)
    names = list(header or [])
    line = 1
    try:
        for cells in reader:
            where = f"{path}:{line}"
            if names and cells:
                yield _build_row(names, cells, where)
            elif cells:  # else a blank line
                names = [name.strip() for name in cells]
                named = [name for name in names if name]
                if len(set(named)) < len(named) or not named:
                    found = ", ".join(names)
                    yield RowError(f"{where}: expected distinct column names, found {found}; {_NAMES_HINT}")
                    return
            line = reader.line_num + 1
    except csv.Error as error:
        yield RowError(f"{path}:{line}: expected a row of a table; {error}")


def _build_row(names: Sequence[str], cells: Sequence[str], where: str) -> Row | RowError:
    """A row of a table; a column without a name must be empty, and no row repeats the header line."""
    if len(cells) != len(names):
        return RowError(f"{where}: expected {len(names)} columns ({', '.join(names)}), found {len(cells)}")
    for number, (name, cell) in enumerate(zip(names, cells, strict=True), start=1):
        if not name and cell.strip():
            return RowError(f"{where}: column {number} has no name but holds {cell[:40]!r}; {_NAMES_HINT}")
    if sorted(cell.strip().casefold() for cell in cells) == sorted(name.casefold() for name in names):
        return RowError(f"{where}: this line holds the column names ({', '.join(names)}), not a row; delete it")
    return Row({name: cell for name, cell in zip(names, cells, strict=True) if name}, where)


def read_parquet(path: Path, encoding: str, header: Sequence[str] | None) -> Iterator[Row | RowError]:
    """Rows of a Parquet file, which has its own column names."""
    path.open("rb").close()  # raises FileNotFoundError if it is missing
    try:
        table = datasets.load_dataset("parquet", data_files=str(path), split="train")
    except Exception as error:  # pyarrow and datasets have many types for "not a table"
        if "corresponds to no data" not in str(error):
            yield RowError(f"{path}: expected a Parquet table; {_first_line(error.__cause__ or error)}")
        return
    yield from _table_rows(table, str(path))


def read_dataset(dataset: str, subset: str | None, split: str) -> Iterator[Row | RowError]:
    """Rows of one split of a dataset on the Hub, in its cache, or in a local folder.

    Raises:
        NotFoundError: there is no such dataset, subset or split, or the Hub cannot be reached.
    """
    try:
        table = datasets.load_dataset(dataset, subset, split=split)
    except Exception as error:  # datasets raises many unrelated types for "not found"
        raise NotFoundError(f"dataset '{dataset}', split '{split}' cannot be loaded: {_first_line(error)}") from error
    yield from _table_rows(table, f"{dataset}/{split}")


def _first_line(error: BaseException) -> str:
    """The first line of an error's message, without the full stop."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _table_rows(table: "Dataset", name: str) -> Iterator[Row | RowError]:
    """Rows with class ids replaced by the class names of the dataset."""
    to_names = {column: names for column, feature in table.features.items() if (names := _class_names(feature))}
    for number, fields in enumerate(table, start=1):
        named = {column: _to_label_names(fields[column], names) for column, names in to_names.items()}
        yield Row({**fields, **named}, f"{name} row {number}")


def _class_names(feature: Any) -> list[str] | None:
    """The names of a ClassLabel feature, or of a list of ClassLabels."""
    return getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)


def _to_label_names(value: Any, names: list[str]) -> Any:
    """Replace a class id, or each id of a list, by its name; -1 and null give None."""
    if isinstance(value, list):
        return [_to_label_names(item, names) for item in value]
    return None if value is None or value < 0 else names[value]

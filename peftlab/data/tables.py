"""Tables: CSV and TSV by Python's own reader, which knows line numbers; Parquet and the Hub through `datasets`."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.data.rows import Row, RowError
from peftlab.errors import NotFoundError

if TYPE_CHECKING:
    from datasets import Dataset


def read_csv(path: Path, encoding: str, header: Sequence[str] | None) -> Iterator[Row | RowError]:
    """Rows of a comma-separated file; its first line names the columns, unless `header` does. Cells are strings."""
    with path.open(encoding=encoding, newline="") as lines:
        yield from _table(path, csv.reader(lines, strict=True), header)


def read_tsv(path: Path, encoding: str, header: Sequence[str] | None) -> Iterator[Row | RowError]:
    """Rows of a tab-separated file, in which quotes are only quotes."""
    with path.open(encoding=encoding, newline="") as lines:
        yield from _table(path, csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), header)


def _table(path: Path, reader: Any, header: Sequence[str] | None) -> Iterator[Row | RowError]:
    names = list(header or [])
    line = 1
    try:
        for cells in reader:
            if not cells:
                pass  # a blank line
            elif not names:
                names = [name.strip() for name in cells]
                if len(set(names)) < len(names):
                    yield RowError(f"{path}:{line}: expected names of columns, each once, found {', '.join(names)}")
                    return
            elif len(cells) == len(names):
                yield Row(dict(zip(names, cells, strict=True)), f"{path}:{line}")
            else:
                yield RowError(f"{path}:{line}: expected {len(names)} columns ({', '.join(names)}), found {len(cells)}")
            line = reader.line_num + 1
    except csv.Error as error:
        yield RowError(f"{path}:{line}: expected a row of a table; {error}")


def read_parquet(path: Path, encoding: str, header: Sequence[str] | None) -> Iterator[Row | RowError]:
    """Rows of a Parquet file, which carries its own column names."""
    from datasets import load_dataset

    path.open("rb").close()  # an absent file is told as such
    try:
        table = load_dataset("parquet", data_files=str(path), split="train")
    except Exception as error:  # pyarrow and datasets each have their own types for "this is no table"
        if "corresponds to no data" not in str(error):
            yield RowError(f"{path}: expected a Parquet table; {_reason(error.__cause__ or error)}")
        return
    yield from _table_rows(table, str(path))


def read_dataset(dataset: str, subset: str | None, split: str) -> Iterator[Row | RowError]:
    """Rows of one split of a dataset on the Hub, in its cache, or in a local folder.

    Raises:
        NotFoundError: there is no such dataset, subset or split, or the Hub cannot be reached.
    """
    from datasets import load_dataset

    try:
        table = load_dataset(dataset, subset, split=split)
    except Exception as error:  # datasets raises a dozen unrelated types for "it is not there"
        raise NotFoundError(f"dataset '{dataset}', split '{split}' cannot be loaded: {_reason(error)}") from error
    yield from _table_rows(table, f"{dataset}/{split}")


def _reason(error: BaseException) -> str:
    """The first line of a library's error, without its full stop."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _table_rows(table: "Dataset", name: str) -> Iterator[Row | RowError]:
    """Rows with class numbers turned into the names that the dataset carries for them."""
    to_names = {column: names for column, kind in table.features.items() if (names := _class_names(kind))}
    for number, fields in enumerate(table, start=1):
        named = {column: _named(fields[column], names) for column, names in to_names.items()}
        yield Row({**fields, **named}, f"{name} row {number}")


def _class_names(kind: Any) -> list[str] | None:
    """Names of a ClassLabel column, or of a list of them."""
    return getattr(kind, "names", None) or getattr(getattr(kind, "feature", None), "names", None)


def _named(value: Any, names: list[str]) -> Any:
    """A class number → its name; -1 and null mean that there is none."""
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    return None if value is None or value < 0 else names[value]

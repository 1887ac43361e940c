"""CSV, Parquet and the Hub, through the `datasets` library (imported only when used)."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.data.rows import Row, RowError
from peftlab.errors import NotFoundError

if TYPE_CHECKING:
    from datasets import Dataset


def read_csv(path: Path) -> Iterator[Row | RowError]:
    """Rows of a CSV file with a header line."""
    return _file_rows("csv", path)


def read_parquet(path: Path) -> Iterator[Row | RowError]:
    """Rows of a Parquet file."""
    return _file_rows("parquet", path)


def read_dataset(dataset: str, subset: str | None, split: str) -> Iterator[Row | RowError]:
    """Rows of one split of a dataset on the Hub, in its cache, or in a local folder.

    Raises:
        NotFoundError: there is no such dataset, subset or split, or the Hub cannot be reached.
    """
    from datasets import load_dataset

    try:
        table = load_dataset(dataset, subset, split=split)
    except Exception as error:  # datasets raises a dozen unrelated types for "it is not there"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NotFoundError(f"dataset '{dataset}', split '{split}' cannot be loaded: {reason}") from error
    yield from _table_rows(table, f"{dataset}/{split}")


def _file_rows(kind: str, path: Path) -> Iterator[Row | RowError]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        table = load_dataset(kind, data_files=str(path), split="train")
    except DatasetGenerationError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        yield RowError(f"{path}: expected a {kind} table; {reason}")
        return
    yield from _table_rows(table, str(path))


def _table_rows(table: "Dataset", name: str) -> Iterator[Row | RowError]:
    """Rows with class numbers turned into the names that the dataset carries for them."""
    to_names = {column: names for column, kind in table.features.items() if (names := _class_names(kind))}
    for number, fields in enumerate(table, start=1):
        for column, names in to_names.items():
            value = fields[column]
            fields[column] = [names[i] for i in value] if isinstance(value, list) else names[value]
        yield Row(fields, f"{name} row {number}")


def _class_names(kind: Any) -> list[str] | None:
    """Names of a ClassLabel column, or of a list of them."""
    return getattr(kind, "names", None) or getattr(getattr(kind, "feature", None), "names", None)

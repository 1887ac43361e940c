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
        raise NotFoundError(f"dataset '{dataset}', split '{split}' cannot be loaded: {_reason(error)}") from error
    yield from _table_rows(table, f"{dataset}/{split}")


def _file_rows(kind: str, path: Path) -> Iterator[Row | RowError]:
    from datasets import load_dataset

    path.open("rb").close()  # an absent file is told as such
    try:
        table = load_dataset(kind, data_files=str(path), split="train")
    except Exception as error:  # pandas, pyarrow and datasets each have their own types for "this is no table"
        if "corresponds to no data" not in str(error):
            yield RowError(f"{path}: expected a {kind} table; {_reason(error.__cause__ or error)}")
        return
    yield from _table_rows(table, str(path))


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

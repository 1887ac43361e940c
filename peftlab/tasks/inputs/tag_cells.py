"""The tags of a row, by name or by number, and what all rows of a split show about them."""

from collections.abc import Iterator, Sequence
from typing import Any

from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.errors import ErrorCollector
from peftlab.tasks.inputs.columns import json_cell, quoted, string_list
from peftlab.tasks.labels.tag_schemes import detect_scheme

MIN_ROWS = 5
"""With fewer rows of one word each, they may be what they seem."""


def read_tags(value: Any, tag_names: Sequence[str] | None) -> list[str]:
    """The tags of a row; whole numbers are indices of `tag_names`.

    Raises:
        RowError: it is no list of tags, or has numbers that `tag_names` does not list.
    """
    value = json_cell(value, "tags") if isinstance(value, str) and value.lstrip().startswith("[") else value
    items = value.split() if isinstance(value, str) else value
    if not (isinstance(items, list) and items and all(map(_is_number, items))):
        return string_list(value, "tags")
    numbers = [int(item) for item in items]
    if tag_names is None:
        raise RowError(
            f"tags are numbers ({quoted(items)}); list the tags in the order of their numbers, as in "
            "task.labels: [O, B-PER, I-PER]"
        )
    wrong = next((number for number in numbers if not 0 <= number < len(tag_names)), None)
    if wrong is not None:
        raise RowError(f"expected tags to be numbers from 0 to {len(tag_names) - 1}, as task.labels has, found {wrong}")
    return [tag_names[number] for number in numbers]


def find_scheme(rows: Sequence[Row], tag_names: Sequence[str] | None, errors: ErrorCollector) -> str:
    """The tag scheme of a split: `io` if no tag has a prefix, else `auto`; see `detect_scheme`.

    `tag_names` are those that numbers stand for.
    """
    try:
        return detect_scheme([*(tag_names or ()), *(tag for row in rows for tag in _names(row))])
    except ValueError as error:
        errors.add(f"{error}.", where=rows[0].where)
        return "io"


def refuse_one_word_rows(rows: Sequence[Row], errors: ErrorCollector) -> None:
    """A table with one word a row would be learned as sentences of one word."""
    tokens = [_cell_tokens(row.fields["tokens"]) for row in rows if "tokens" in row.fields and "tags" in row.fields]
    if len(tokens) >= MIN_ROWS and all(len(words) < 2 for words in tokens):
        others = [name for name in rows[0].fields if name not in ("tokens", "tags")]
        columns = f" Available columns: {', '.join(others)}." if others else ""
        message = "every row holds one word, so the file has one word a row."
        if any(issue.message == message for issue in errors.issues):
            return  # said of another split
        errors.add(
            message,
            where=rows[0].where,
            hint=f"Name the column that tells sentences apart: data.group_by.{columns}",
        )


def _names(row: Row) -> Iterator[str]:
    """The tags of a row that are no numbers, without checking them."""
    cell = row.fields.get("tags")
    for tag in _cell_tokens(cell):
        if isinstance(tag, str) and not _is_number(tag):
            yield tag


def _cell_tokens(cell: Any) -> list[Any]:
    if isinstance(cell, str):
        try:
            cell = json_cell(cell, "") if cell.lstrip().startswith("[") else cell.split()
        except RowError:  # `read` reports it
            return []
    return cell if isinstance(cell, list) else []


def _is_number(item: Any) -> bool:
    if isinstance(item, str):
        return item.removeprefix("-").isdecimal()
    return isinstance(item, int) and not isinstance(item, bool)

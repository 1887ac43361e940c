"""The columns of a row, by the names and kinds a task expects, and the sentences for a miss."""

import json
import math
from collections.abc import Sequence
from typing import Any

from peftlab.data import Row
from peftlab.data.rows import BlankRowError, RowError
from peftlab.errors import nearest

MAPPING = "Map yours under data.columns, our name first, as in '{ours}: {theirs}' (--column {ours}={theirs})."


def chosen_form(row: Row, *forms: Sequence[str]) -> Sequence[str]:
    """The first of `forms`, each a set of columns, that the row has.

    Raises:
        RowError: it has none; lists what it has, and the nearest name to what is missing.
    """
    for form in forms:
        if row.fields.keys() >= set(form):
            return form
    matches = max((_guess_columns(form, list(row.fields)) for form in forms), key=_match_score)
    ours, theirs = max(matches.items(), key=lambda guess: bool(guess[1]))
    wanted = ", or ".join(" and ".join(form) for form in forms)
    found = ", ".join(row.fields) or "none"
    meant = "".join(f" Is '{theirs}' the {ours}?" for ours, theirs in matches.items() if theirs)
    mapping = MAPPING.format(ours=ours, theirs=theirs or "your-name")
    noun = "column" if all(len(form) == 1 for form in forms) else "columns"
    raise RowError(f"expected {noun} {wanted}; found {found}.{meant} {mapping}")


def _guess_columns(form: Sequence[str], found: Sequence[str]) -> dict[str, str | None]:
    """The columns of a form that are missing, each with the column there that may be it."""
    spare = set(found) - set(form)
    return {name: nearest(name, spare) for name in form if name not in found}


def _match_score(matches: dict[str, str | None]) -> tuple[int, int]:
    """The fewer columns are missing for sure the better, then the fewer are missing at all."""
    return -sum(guess is None for guess in matches.values()), -len(matches)


def text_column(row: Row, name: str) -> str:
    """A string with something to read in it. Raises RowError."""
    text = optional_text_column(row, name)
    if not text.strip():
        raise BlankRowError(f"expected {name} to hold some text, found {quoted(text)}")
    return text


def optional_text_column(row: Row, name: str) -> str:
    """A string that may be empty, as it comes to `predict`. Raises RowError."""
    text = row.fields[name]
    if not isinstance(text, str):
        raise (BlankRowError if text is None else RowError)(f"expected {name} to be a string, found {quoted(text)}")
    return text


def number_column(row: Row, name: str) -> float:
    """A finite number, also written in a table's cell. Raises RowError."""
    value = row.fields[name]
    try:
        number = float("nan") if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not math.isfinite(number):
        raise RowError(f"expected {name} to be a number, found {quoted(value)}")
    return number


def string_list(value: Any, name: str) -> list[str]:
    """A list of strings; table cells may hold it as JSON or separated by blanks. Raises RowError."""
    if isinstance(value, str):
        value = json_cell(value, name) if value.lstrip().startswith("[") else value.split()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RowError(f"expected {name} to be a list of strings, found {quoted(value)}")
    return value


def json_cell(value: Any, name: str) -> Any:
    """A table's cell that holds JSON; anything but a string as it is. Raises RowError."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise RowError(f"expected {name} as JSON; {error.msg} at column {error.colno}") from None


def quoted(value: Any) -> str:
    """A value as a message quotes it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""The rows and splits that readers produce and tasks consume."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


class RowError(ValueError):
    """A row does not fit its format or its task; the message says what was expected."""


class BlankRowError(RowError):
    """A row has no text or no label; `data.drop_blank` leaves it out."""


def find_surrogate(value: Any) -> str:
    """The first half of a surrogate pair in a value of JSON, as an escape; empty if there is none."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"\\u{ord(value[error.start]):04x}"
        return ""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next(filter(None, map(find_surrogate, inside)), "")


class TrackedFields(dict[str, Any]):
    """The fields of a row, which remembers in `seen` the columns that are read."""

    def __init__(self, fields: dict[str, Any], seen: set[str]) -> None:
        super().__init__(fields)
        self._seen = seen

    def __getitem__(self, name: str) -> Any:
        self._seen.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """See `dict.get`."""
        self._seen.add(name)
        return super().get(name, default)


@dataclass(frozen=True)
class Row:
    """One record of a file. `where` is `file:line`, or `file row n` in a format without lines."""

    fields: dict[str, Any]
    where: str


@dataclass(frozen=True)
class Split:
    """The rows of one split.

    `source` describes where they came from, `left_out` counts rows left out by reason, and `num_unreadable` counts rows
    that could not be read, which are errors.
    """

    rows: list[Row]
    source: str
    left_out: dict[str, int] = field(default_factory=dict)
    num_unreadable: int = 0


@dataclass(frozen=True)
class DataSplits:
    """Every split by name: `train`, `validation`, and `test` if the recipe has one."""

    splits: dict[str, Split] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[str, Split]]:
        return iter(self.splits.items())

    @cached_property
    def content_hash(self) -> str:
        """sha256 over the fields of every row, in order. Path and file format do not change it."""
        digest = hashlib.sha256()
        for name, split in self:
            digest.update(name.encode())
            for row in split.rows:
                digest.update(json.dumps(row.fields, sort_keys=True, ensure_ascii=False, default=str).encode())
        return digest.hexdigest()

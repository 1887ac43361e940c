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

"""What every reader gives and every task takes."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


class RowError(ValueError):
    """A row is not what its format or task expects; the message says what was expected."""


@dataclass(frozen=True)
class Row:
    """One record as the file has it, and where: `file:line`, or `file row n` where lines have no meaning."""

    fields: dict[str, Any]
    where: str


@dataclass(frozen=True)
class Split:
    """Rows of one split; `source` says where they came from, in words."""

    rows: list[Row]
    source: str


@dataclass(frozen=True)
class DataSplits:
    """Every split by name: `train`, `validation`, and `test` where the recipe has one."""

    splits: dict[str, Split] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[str, Split]]:
        return iter(self.splits.items())

    @cached_property
    def content_hash(self) -> str:
        """sha256 over the fields of every row, in order: the same data under any path or file format hashes alike."""
        digest = hashlib.sha256()
        for name, split in self:
            digest.update(name.encode())
            for row in split.rows:
                digest.update(json.dumps(row.fields, sort_keys=True, ensure_ascii=False, default=str).encode())
        return digest.hexdigest()

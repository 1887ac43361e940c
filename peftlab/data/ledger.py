"""Counts of used, dropped and truncated rows of a split."""

from dataclasses import asdict, dataclass, field
from typing import Any

PUBLISHED_KEYS = {"truncated": "cut", "num_lost_targets": "targets_lost", "warnings": "notes"}
"""Field → its key in the manifest, where they differ."""


@dataclass
class Ledger:
    """Counts for one split.

    A *target* is what the model must predict for a row: an entity, an answer, a label. `warnings` counts changes
    without loss, by reason (such as entities widened to whole words). `unknown_tokens` and `unknown_characters` are the
    shares of the tokens and the characters that the tokenizer does not know, 0 to 1.
    """

    source: str = ""
    read: int = 0
    used: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    truncated: int = 0
    targets: int = 0
    num_lost_targets: int = 0
    unknown_tokens: float = 0.0
    unknown_characters: float = 0.0
    warnings: dict[str, int] = field(default_factory=dict)

    @property
    def lost_fraction(self) -> float:
        """The larger of the share of rows dropped and the share of targets lost, 0 to 1."""
        rows = sum(self.dropped.values()) / self.read if self.read else 0.0
        targets = self.num_lost_targets / self.targets if self.targets else 0.0
        return max(rows, targets)

    def drop(self, reason: str) -> None:
        """Count a dropped row."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def add_warning(self, reason: str, count: int = 1) -> None:
        """Count a change that lost nothing."""
        if count:
            self.warnings[reason] = self.warnings.get(reason, 0) + count

    def as_dict(self) -> dict[str, Any]:
        """The counts as plain values, under the manifest's keys."""
        return {PUBLISHED_KEYS.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, counts: dict[str, Any]) -> "Ledger":
        """The ledger that `as_dict` gave `counts` for."""
        fields = {key: name for name, key in PUBLISHED_KEYS.items()}
        return cls(**{fields.get(key, key): value for key, value in counts.items()})

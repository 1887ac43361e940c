"""What happened to the rows on their way into training: nothing is dropped or cut without being counted."""

from dataclasses import asdict, dataclass, field


@dataclass
class Ledger:
    """Counts for one split.

    A *target* is what a row asks the model to find: an entity, an answer, a label. `notes` counts what was changed
    without loss, by reason (such as entities widened to whole words).
    """

    source: str = ""
    read: int = 0
    used: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    cut: int = 0
    targets: int = 0
    targets_lost: int = 0
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def lost_share(self) -> float:
        """The larger of the share of rows dropped and the share of targets lost, 0 to 1."""
        rows = sum(self.dropped.values()) / self.read if self.read else 0.0
        targets = self.targets_lost / self.targets if self.targets else 0.0
        return max(rows, targets)

    def drop(self, reason: str) -> None:
        """Count a row left out."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def note(self, what: str, count: int = 1) -> None:
        """Count a change that lost nothing."""
        if count:
            self.notes[what] = self.notes.get(what, 0) + count

    def as_dict(self) -> dict[str, object]:
        """The counts as plain values, for the manifest."""
        return asdict(self)

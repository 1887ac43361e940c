"""What a tuning run tells while it goes on."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from peftlab.data import Ledger
from peftlab.tasks.inputs.encoding import ProgressCallback
from peftlab.tasks.task import Task

if TYPE_CHECKING:
    from peftlab.base import Base


class Progress:
    """A listener that does nothing; a front end overrides what it wants to show."""

    def encoding(self, split: str) -> AbstractContextManager[ProgressCallback]:
        """Inside the block the rows of a split are encoded; what it gives is told how many are done."""
        return nullcontext(lambda done, total: None)

    def data_read(self, task: Task, ledgers: Mapping[str, Ledger]) -> None:
        """Every row is read, encoded and accounted for."""

    def base_loaded(self, base: "Base", trained: int) -> None:
        """The base is in memory, with so many parameters of delta and head to train."""

    def warn(self, message: str) -> None:
        """Something the user should know, though the run goes on."""

    def note(self, message: str) -> None:
        """Something worth knowing; nothing is wrong."""

    def freezing(self, split: str) -> AbstractContextManager[ProgressCallback]:
        """Inside the block the rows of a split go through the frozen layers, to be kept; see `encoding`."""
        return nullcontext(lambda done, total: None)

    def training_started(self, total_steps: int, epochs: int, done_steps: int) -> None:
        """Training begins, after `done_steps` where it is resumed."""

    def step_done(self, step: int, loss: float | None) -> None:
        """An optimizer step is done; `loss` is the mean since it was last told, or None."""

    def epoch_done(self, epoch: float, scores: Mapping[str, float], *, best: bool) -> None:
        """The validation split is scored; `best` if every epoch before was worse."""

    def training_ended(self, stopped_early: bool) -> None:
        """No more steps; the best checkpoint is in memory."""

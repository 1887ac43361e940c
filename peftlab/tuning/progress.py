"""Callbacks through which a front end receives the progress of a tuning run."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from peftlab.data import Ledger
from peftlab.tasks.inputs.encoding import ProgressCallback
from peftlab.tasks.task import Task

if TYPE_CHECKING:
    from peftlab.base import Base


class Progress:
    """Callbacks that do nothing; a front end overrides those that it wants to show."""

    def track_encoding(self, split: str) -> AbstractContextManager[ProgressCallback]:
        """Inside the block the rows of a split are encoded; yields a callback that receives how many are done."""
        return nullcontext(lambda done, total: None)

    def on_data_encoded(self, task: Task, ledgers: Mapping[str, Ledger]) -> None:
        """All rows are read, encoded and counted in the ledgers."""

    def on_base_loaded(self, base: "Base", num_trainable: int) -> None:
        """The base is in memory; `num_trainable` counts the parameters of delta and head."""

    def warn(self, message: str) -> None:
        """Report a warning; the run continues."""

    def info(self, message: str) -> None:
        """Report information; nothing is wrong."""

    def track_activation_caching(self, split: str) -> AbstractContextManager[ProgressCallback]:
        """Inside the block the frozen layers compute activations of a split; see `track_encoding`."""
        return nullcontext(lambda done, total: None)

    def track_cross_validation(self) -> AbstractContextManager[ProgressCallback]:
        """Inside the block a model is trained for each fold; the callback receives how many steps are done."""
        return nullcontext(lambda done, total: None)

    def on_train_begin(self, total_steps: int, epochs: int, completed_steps: int) -> None:
        """Training begins, after `completed_steps` if it is resumed."""

    def on_step_end(self, step: int, loss: float | None) -> None:
        """An optimizer step is done; `loss` is the mean loss since the last log, or None between logs."""

    def on_epoch_loss(self, loss: float) -> None:
        """The steps of an epoch are done; `loss` is the mean of their losses."""

    def on_epoch_end(self, epoch: float, scores: Mapping[str, float], *, best: bool) -> None:
        """The validation split is scored; `best` is True if this epoch is published unless a better one follows."""

    def on_unscored_epoch_end(self, epoch: float) -> None:
        """An epoch is done; there is no validation split."""

    def on_train_end(self, stopped_early: bool) -> None:
        """No more steps; the best checkpoint is in memory."""

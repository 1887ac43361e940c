"""Trainer callbacks: progress, early stopping and interruption."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback

from peftlab.tuning.distributed.process_group import ProcessGroup
from peftlab.tuning.progress import Progress
from peftlab.tuning.report.epoch_losses import mean_epoch_losses


class ProgressReporter(TrainerCallback):
    """Passes Trainer's events on to a `Progress`; see `Run.keeps_latest_tie`."""

    def __init__(self, progress: Progress, keeps_latest_tie: bool) -> None:
        self.progress, self.keeps_latest_tie = progress, keeps_latest_tie

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Training begins."""
        self.progress.on_train_begin(state.max_steps, state.num_train_epochs, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One optimizer step."""
        self.progress.on_step_end(state.global_step, None)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """The mean loss since the last log."""
        if "loss" in logs:
            self.progress.on_step_end(state.global_step, logs["loss"])
            if args.eval_strategy == "no" and float(state.epoch).is_integer():
                self._report_loss(state)
                self.progress.on_unscored_epoch_end(state.epoch)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log the loss of the last steps, so that the log has the losses of whole epochs."""
        control.should_log = True

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """The validation split is scored."""
        self._report_loss(state)
        scores = {name.removeprefix("eval_"): value for name, value in metrics.items()}
        score, before = scores[args.metric_for_best_model], state.best_metric
        better = before is None or (score > before if args.greater_is_better else score < before)
        best = better or (self.keeps_latest_tie and score == before)
        self.progress.on_epoch_end(state.epoch, scores, best=best)

    def _report_loss(self, state: Any) -> None:
        losses = list(mean_epoch_losses(state.log_history).values())
        if losses:
            self.progress.on_epoch_loss(losses[-1])


class EarlyStopping(EarlyStoppingCallback):
    """Early stopping that ignores epochs with score 0, because F1 of rare labels stays 0 for some epochs."""

    def check_metric_value(self, args: Any, state: Any, control: Any, metric_value: float) -> None:
        """See `EarlyStoppingCallback`."""
        if state.best_metric:
            super().check_metric_value(args, state, control, metric_value)


class StopOnSignal(TrainerCallback):
    """Stops after the current step and a checkpoint on Ctrl-C or SIGTERM; a second signal stops at once.

    Signals reach the processes at different times, so after each step all of them check whether any must stop.
    """

    def __init__(self, process_group: ProcessGroup) -> None:
        self.process_group = process_group
        self.stop_requested = self.stopping = False

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Catch the signals inside the block; Python allows it only in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stop_requested:
            raise KeyboardInterrupt
        self.stop_requested = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop after this step if a process received a signal."""
        self.stopping = self.process_group.any(self.stop_requested)
        if self.stopping:
            control.should_save = control.should_training_stop = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop after a signal during validation; the checkpoint of the epoch is saved next anyway."""
        control.should_training_stop |= self.process_group.any(self.stop_requested)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Do not score and save again: Trainer ends the epoch when it stops."""
        if self.stopping and control.should_training_stop:
            control.should_save = control.should_evaluate = False

"""What happens between the steps of a run: telling, early stopping, interruption."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback

from peftlab.tuning.distributed.process_group import Processes
from peftlab.tuning.progress import Progress


class Telling(TrainerCallback):
    """Passes the Trainer's events on to a `Progress`."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Training begins."""
        self.progress.training_started(state.max_steps, int(args.num_train_epochs), state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One optimizer step."""
        self.progress.step_done(state.global_step, None)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """The mean loss since the last log."""
        if "loss" in logs:
            self.progress.step_done(state.global_step, logs["loss"])

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """The validation split is scored."""
        scores = {name.removeprefix("eval_"): value for name, value in metrics.items()}
        score, before = scores[args.metric_for_best_model], state.best_metric
        best = before is None or (score > before if args.greater_is_better else score < before)
        self.progress.epoch_done(state.epoch, scores, best=best)


class Patience(EarlyStoppingCallback):
    """Early stopping that begins to count once the score has left 0, where F1 of rare labels stays for some epochs."""

    def check_metric_value(self, args: Any, state: Any, control: Any, metric_value: float) -> None:
        """See `EarlyStoppingCallback`."""
        if state.best_metric:
            super().check_metric_value(args, state, control, metric_value)


class Interruption(TrainerCallback):
    """Ctrl-C or SIGTERM: finish the step, save a checkpoint, stop. A second one stops at once.

    Signals reach several processes at different times, so they agree after each step whether to stop.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.asked = self.agreed = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals inside the block (Python allows it in the main thread only)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop after this step, if asked to."""
        self.agreed = self.processes.any(self.asked)
        if self.agreed:
            control.should_save = control.should_training_stop = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Asked while validating: the epoch's checkpoint is about to be saved anyway."""
        control.should_training_stop |= self.processes.any(self.asked)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Trainer takes a stop for the end of an epoch: do not score and save once more."""
        if self.agreed and control.should_training_stop:
            control.should_save = control.should_evaluate = False

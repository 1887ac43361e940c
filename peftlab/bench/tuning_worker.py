"""A tuning run that notes where its time goes; runs in a process of its own."""

import time
from collections.abc import Mapping
from typing import Any

from peftlab.tuning import Progress, tune


class Stopwatch(Progress):
    """Seconds spent in training (checkpoints included) and in evaluation after each epoch."""

    def __init__(self) -> None:
        self.parts = {"training": 0.0, "evaluation": 0.0}
        self.last = 0.0

    def on_train_begin(self, total_steps: int, epochs: int, done_steps: int) -> None:
        """Training begins."""
        self.last = time.perf_counter()

    def on_step_end(self, step: int, loss: float | None) -> None:
        """What went before was training."""
        self._count("training")

    def on_epoch_end(self, epoch: float, scores: Mapping[str, float], *, best: bool) -> None:
        """What came after the last step was evaluation."""
        self._count("evaluation")

    def on_train_end(self, stopped_early: bool) -> None:
        """The best checkpoint is loaded again."""
        self._count("training")

    def _count(self, part: str) -> None:
        now = time.perf_counter()
        self.parts[part] += now - self.last
        self.last = now


def tune_watched(recipe_path: str, overrides: dict[str, Any], store: str, device: str) -> dict[str, Any]:
    """Tune; the main score of the last split there is, and the seconds of training, evaluation and what came after."""
    watch = Stopwatch()
    result = tune(recipe_path, overrides=overrides, store=store, device=device, progress=watch)
    end = time.perf_counter() - watch.last
    scores = result.scores.get("test", result.scores["validation"])
    return {"score": scores.values[result.task.main_score], "parts": {**watch.parts, "end": end}}

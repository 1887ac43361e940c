"""Tune and measure the time of each part of the run; runs in its own process."""

import time
from collections.abc import Mapping
from typing import Any

from peftlab.tuning import Progress, tune


class TuningTimer(Progress):
    """Measures the seconds of training (checkpoints included) and of evaluation after each epoch."""

    def __init__(self) -> None:
        self.parts = {"training": 0.0, "evaluation": 0.0}
        self.last = 0.0

    def on_train_begin(self, total_steps: int, epochs: int, completed_steps: int) -> None:
        """Start the timer."""
        self.last = time.perf_counter()

    def on_step_end(self, step: int, loss: float | None) -> None:
        """Count the time before as training."""
        self._add_time("training")

    def on_epoch_end(self, epoch: float, scores: Mapping[str, float], *, best: bool) -> None:
        """Count the time since the last step as evaluation."""
        self._add_time("evaluation")

    def on_train_end(self, stopped_early: bool) -> None:
        """Count the reload of the best checkpoint as training."""
        self._add_time("training")

    def _add_time(self, part: str) -> None:
        now = time.perf_counter()
        self.parts[part] += now - self.last
        self.last = now


def time_tuning(recipe_path: str, overrides: dict[str, Any], store: str, device: str) -> dict[str, Any]:
    """Tune → the main score on the test (or else validation) split, and the seconds of each part."""
    timer = TuningTimer()
    result = tune(recipe_path, overrides=overrides, store=store, device=device, progress=timer)
    end = time.perf_counter() - timer.last
    manifest = result.adapter.manifest
    scores = result.scores[str(manifest.main_split)]
    return {"score": scores.values[result.task.metric.name], "parts": {**timer.parts, "end": end}}

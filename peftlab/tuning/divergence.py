"""A run that learns nothing: one whose numbers are lost is stopped at once, one that answers all rows alike is told."""

import math
from typing import Any

import torch
from transformers import TrainerCallback

from peftlab.errors import TuningDiverged
from peftlab.recipe import Recipe
from peftlab.tasks import Scores, Task
from peftlab.tuning.progress import Progress
from peftlab.tuning.run import Run


class Divergence(TrainerCallback):
    """Ends a run whose weights are no numbers any more; no later step could mend them.

    In fp16 a loss may overflow alone: its step is left out, and the run goes on.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.seen = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Where the loss is no number, which all processes are told alike, look what has become of the weights."""
        if not math.isfinite(logs.get("loss", 0.0)):
            self._look(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look in any case, for no loss has been told of the last steps; do not score and save what is lost."""
        self._look(control)
        if self.seen:
            control.should_save = control.should_evaluate = False

    def _look(self, control: Any) -> None:
        self.seen = self.seen or self.run.processes.any(not _all_numbers(self.run.model))
        control.should_training_stop |= self.seen

    def settle(self, state: Any, progress: Progress) -> None:
        """Say what happened, if it did; the best checkpoint from before is what the run comes to.

        Raises:
            TuningDiverged: there is none.
        """
        if not self.seen:
            return
        told = f"training diverged: at step {state.global_step} of {state.max_steps} weights were no numbers any more"
        way_out = f"Lower training.learning_rate: {_rates(self.run.recipe)}"
        if state.best_metric is None:
            raise TuningDiverged(f"{told}; nothing was published. {way_out}")
        progress.warn(f"{told}; the best epoch before is kept. {way_out}")


def warn_of_collapse(recipe: Recipe, task: Task, scores: Scores, progress: Progress) -> None:
    """Say so where the best epoch's answers to validation rows show nothing of what was to be learnt."""
    if told := _collapse(task, scores):
        progress.warn(
            f"{told}: nothing was learnt. Train for longer, or at another training.learning_rate: {_rates(recipe)}"
        )


def _collapse(task: Task, scores: Scores) -> str:
    if not task.smaller_is_better and scores.values[task.main_score] == 0:
        return f"validation {task.main_score} is 0"
    if task.main_score != "accuracy" or scores.confusion is None:
        return ""
    columns = zip(scores.confusion.labels, zip(*scores.confusion.counts, strict=True), strict=True)
    given = [label for label, column in columns if any(column)]
    asked = [row for row in scores.confusion.counts if any(row)]
    return f"every validation row is answered '{given[0]}'" if len(given) == 1 < len(asked) else ""


def _rates(recipe: Recipe) -> str:
    rate, usual = recipe.training.learning_rate, recipe.method.usual_learning_rate
    return f"it is {rate:g}, and {usual:g} where a recipe of this method names none."


def _all_numbers(model: torch.nn.Module) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in model.parameters() if parameter.requires_grad)

"""Runs that fail to learn: a diverged run is stopped, and a run that predicts the same for every row is reported."""

import math
from typing import Any

import torch
from transformers import TrainerCallback

from peftlab.errors import TuningDiverged
from peftlab.recipe import Recipe
from peftlab.tasks import Scores, Task
from peftlab.tuning.progress import Progress
from peftlab.tuning.run import Run


class DivergenceCallback(TrainerCallback):
    """Stops a run whose weights became NaN or infinite, because no later step can repair them.

    In fp16 the loss alone may overflow: Trainer skips that step, and the run continues.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.detected = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Check the weights if the logged loss, which is the same in all processes, is not finite."""
        if not math.isfinite(logs.get("loss", 0.0)):
            self._check_weights(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Check the weights in any case, because the last steps have no logged loss; a diverged epoch is not scored."""
        self._check_weights(control)
        if self.detected:
            control.should_save = control.should_evaluate = False

    def _check_weights(self, control: Any) -> None:
        self.detected = self.detected or self.run.process_group.any(not _is_finite(self.run.model))
        control.should_training_stop |= self.detected

    def report(self, state: Any, progress: Progress) -> None:
        """Warn about a divergence; the run continues with the best checkpoint before it.

        Raises:
            TuningDiverged: there is no checkpoint before it.
        """
        if not self.detected:
            return
        step = f"step {state.global_step} of {state.max_steps}"
        message = f"training diverged: at {step} the weights were NaN or infinite"
        hint = f"Lower training.learning_rate: {_describe_rate(self.run.recipe)}"
        if state.best_metric is None:
            raise TuningDiverged(f"{message}; nothing was published. {hint}")
        progress.warn(f"{message}; the best epoch before is kept. {hint}")


def warn_if_collapsed(recipe: Recipe, task: Task, split: str, scores: Scores, progress: Progress) -> None:
    """Warn if the scores of a split show that nothing was learned."""
    if reason := _collapse_reason(task, split, scores):
        progress.warn(f"{reason}: nothing was learned. {_collapse_hint(recipe)}")


def _collapse_hint(recipe: Recipe) -> str:
    """What may help, without what the recipe has already."""
    length = "max_steps" if recipe.training.max_steps else "num_train_epochs"
    options = [
        f"raise training.{length} (it is {getattr(recipe.training, length)})",
        f"change training.learning_rate ({_describe_rate(recipe).removesuffix('.')})",
    ]
    if getattr(recipe.task, "class_weights", "balanced") is None:
        options.append("set task.class_weights: balanced if some labels are rare")
    if recipe.training.early_stopping_patience is not None:
        options.append("set training.early_stopping_patience: null if the run stopped early")
    return f"You can {'; '.join(options)}."


def _collapse_reason(task: Task, split: str, scores: Scores) -> str:
    """Empty if the scores show that something was learned."""
    if task.metric.greater_is_better and scores.values[task.metric.name] == 0:
        return f"{split} {task.metric.name} is 0"
    if task.metric.name != "accuracy" or scores.confusion is None:
        return ""
    columns = zip(scores.confusion.labels, zip(*scores.confusion.counts, strict=True), strict=True)
    predicted_labels = [label for label, column in columns if any(column)]
    gold_rows = [row for row in scores.confusion.counts if any(row)]
    if len(predicted_labels) == 1 < len(gold_rows):
        return f"the prediction for every {split} row is '{predicted_labels[0]}'"
    return ""


def _describe_rate(recipe: Recipe) -> str:
    rate, default = recipe.training.learning_rate, recipe.method.default_learning_rate
    comparison = ", the default for this method" if rate == default else f"; the default for this method is {default:g}"
    return f"it is {rate:g}{comparison}."


def _is_finite(model: torch.nn.Module) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in model.parameters() if parameter.requires_grad)

"""Cross-validation: the score of a run with too few rows for a validation split.

For each fold a model is trained on all rows outside it, from the same initial weights and for as many steps as the
final model (fewer for long rows), and predicts the fold. The final model is trained on all rows.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from peftlab.tasks.inputs.encoding import ProgressCallback
from peftlab.tasks.prediction import decode_outputs
from peftlab.tuning.dataset import CROSS_VALIDATION
from peftlab.tuning.preference.reference import run_forward
from peftlab.tuning.progress import Progress
from peftlab.tuning.run import Run
from peftlab.tuning.schedule import steps_per_epoch, total_steps
from peftlab.tuning.split_outputs import SplitOutputs, load_outputs, save_outputs
from peftlab.tuning.training_loop import run_trainer

OUTPUTS_FILE = "cross_validation.safetensors"
FOLD_FOLDER = "fold"
MAX_TOKENS = 300_000  # of all folds: about a minute on two cores with 22 million parameters
MIN_STEPS = 100


class FoldProgress(Progress):
    """Counts the steps of all folds; everything else that happens in a fold is not reported."""

    def __init__(self, on_progress: ProgressCallback, num_folds: int) -> None:
        self.on_progress, self.num_folds = on_progress, num_folds
        self.fold = self.steps = 0

    def on_train_begin(self, total_steps: int, epochs: int, completed_steps: int) -> None:
        """A fold begins."""
        self.fold, self.steps = self.fold + 1, total_steps

    def on_step_end(self, step: int, loss: float | None) -> None:
        """One optimizer step."""
        self.on_progress((self.fold - 1) * self.steps + step, self.num_folds * self.steps)


def cross_validate(run: Run, folder: Path, progress: Progress) -> SplitOutputs:
    """Outputs for every training row, by models that were not trained on it; read from `folder` if they are there.

    The model of the run has its initial weights again afterwards.

    Raises:
        TuningInterrupted, TuningDiverged, ProcessLostError: see `run_trainer`.
    """
    examples, features = run.dataset.examples[CROSS_VALIDATION], run.dataset.features[CROSS_VALIDATION]
    file = folder / OUTPUTS_FILE
    if not file.is_file():
        progress.info(
            f"{run.num_training_rows} training rows are too few to hold out a part of them: first "
            f"{len(run.dataset.folds)}-fold cross-validation, then training on all rows (data.validation: auto)."
        )
        outputs = _train_folds(run, folder / FOLD_FOLDER, progress)
        if run.process_group.is_main:
            save_outputs(outputs, file)
        run.process_group.any(False)  # wait until the file is there
    return SplitOutputs(examples, features, load_outputs(file, len(examples)))


def _train_folds(run: Run, folder: Path, progress: Progress) -> list[list[Any]]:
    outputs: dict[int, list[Any]] = {}
    folds = run.dataset.folds
    with progress.track_cross_validation() as on_progress, _restored_weights(run.model) as restore:
        inside = FoldProgress(on_progress, len(folds))
        for number, held_out in enumerate(folds, start=1):
            restore()
            outputs |= _train_fold(run, held_out, folder, inside)
            progress.info(f"Fold {number} of {len(folds)}: {_fold_score(run, held_out, outputs)}.")
    return [outputs[row] for row in range(len(outputs))]


def _fold_score(run: Run, held_out: Sequence[int], outputs: Mapping[int, list[Any]]) -> str:
    examples, features = run.dataset.examples[CROSS_VALIDATION], run.dataset.features[CROSS_VALIDATION]
    examples, features = [examples[row] for row in held_out], [features[row] for row in held_out]
    predictions = decode_outputs(run.task, examples, features, [outputs[row] for row in held_out])
    metric = run.task.metric
    score = metric.score(examples, predictions).values[metric.name]
    return f"{metric.name} {score:.3f} on {len(held_out)} rows"


def _train_fold(run: Run, held_out: Sequence[int], folder: Path, progress: Progress) -> dict[int, list[Any]]:
    """Outputs for the features of the held-out rows, by row."""
    fold = fold_run(run, held_out)
    if (probe := run.baselines.probe) and run.starts_from_probe:
        probe.refit(run.task, without=held_out).copy_to(run.output_layer(probe.layer))
    folder.mkdir(exist_ok=True)
    run_trainer(fold, folder, progress=progress)
    shutil.rmtree(folder, ignore_errors=True)
    features = {row: run.dataset.features[CROSS_VALIDATION][row] for row in held_out}
    made = iter(run_forward(fold)([one for windows in features.values() for one in windows]))
    return {row: [next(made) for _ in windows] for row, windows in features.items()}


def fold_run(run: Run, held_out: Sequence[int]) -> Run:
    """The run on all training rows but those held out, for `fold_steps`."""
    kept = [row for row in range(len(run.dataset.examples["train"])) if row not in set(held_out)]
    dataset = replace(
        run.dataset,
        examples={"train": [run.dataset.examples["train"][row] for row in kept]},
        features={"train": [run.dataset.features["train"][row] for row in kept]},
        folds=(),
    )
    training = run.recipe.training.model_copy(update={"max_steps": fold_steps(run)})
    recipe = run.recipe.model_copy(update={"training": training})
    return replace(run, recipe=recipe, dataset=dataset, is_fold=True)


def fold_steps(run: Run) -> int:
    """Steps of each fold: those of the run, or fewer for long rows, so that all folds have at most MAX_TOKENS."""
    training, num_rows, world_size = run.recipe.training, len(run.train_features), run.process_group.world_size
    steps = total_steps(training, num_rows, world_size)
    tokens_per_step = sum(map(len, run.train_features)) / steps_per_epoch(training, num_rows, world_size)
    affordable = int(MAX_TOKENS / (len(run.dataset.folds) * tokens_per_step))
    return min(steps, max(MIN_STEPS, affordable))


@contextmanager
def _restored_weights(model: PeftModel) -> Iterator[Callable[[], None]]:
    """Yields a function that restores the weights that `model` has now; they are restored after the block, too."""
    before = {name: tensor.detach().clone() for name, tensor in _changing_tensors(model).items()}
    config = deepcopy(model.peft_config)

    def restore() -> None:
        with torch.no_grad():
            for name, tensor in _changing_tensors(model).items():
                tensor.copy_(before[name])
        for name, values in config.items():
            vars(model.peft_config[name]).update(deepcopy(vars(values)))

    try:
        yield restore
    finally:
        restore()


def _changing_tensors(model: PeftModel) -> dict[str, torch.Tensor]:
    """What training may change: trainable parameters, and buffers."""
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return trainable | dict(model.named_buffers())

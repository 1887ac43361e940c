"""Whether a run trains contrastively: by the recipe, or by the number of rows per class."""

import math
from collections import Counter
from statistics import median

from peftlab.recipe import Recipe, TrainingSection, contrastive_conflict
from peftlab.tuning.dataset import EncodedDataset
from peftlab.tuning.session import TuningSession

MAX_ROWS_PER_CLASS = 16
"""Up to this median, `training.few_shot: auto` chooses contrastive."""
MIN_STEPS, MAX_STEPS = 16, 90
ROWS_PER_STEP = 6
"""The steps are the training rows divided by this number, within MIN_STEPS and MAX_STEPS."""
BATCH_SIZE = 48
WARMUP_RATIO = 0.1


def choose_few_shot(recipe: Recipe, dataset: EncodedDataset, session: TuningSession) -> Recipe:
    """The recipe with `off` or `contrastive` for `training.few_shot: auto`, and the schedule that belongs to it."""
    wanted = recipe.training.few_shot
    if wanted == "auto":
        wanted = "contrastive" if _is_few_shot(recipe, dataset) else "off"
    training = recipe.training.model_copy(update={"few_shot": wanted})
    if wanted == "contrastive":
        training = _contrastive_schedule(training, recipe.method.default_learning_rate, dataset)
        session.progress.info(_describe(training, dataset))
    return recipe.model_copy(update={"training": training})


def _is_few_shot(recipe: Recipe, dataset: EncodedDataset) -> bool:
    """Whether `auto` means contrastive: one label per text, few rows per class, and a recipe that names no length."""
    training = recipe.training
    names_length = training.num_train_epochs or training.max_steps
    is_open = not names_length and not recipe.method.start_from and training.head_init == "auto"
    possible = recipe.task.contrastive_by_default and not contrastive_conflict(recipe)
    return is_open and possible and 0 < rows_per_class(dataset) <= MAX_ROWS_PER_CLASS


def rows_per_class(dataset: EncodedDataset) -> float:
    """The median number of training rows of a class; 0 without classes."""
    kept = [
        example
        for example, features in zip(dataset.examples["train"], dataset.features["train"], strict=True)
        if features
    ]
    counts = Counter(label for example in kept for label in dataset.task.targets.labels_of(example))
    return median(counts.values()) if counts else 0


def _contrastive_schedule(training: TrainingSection, learning_rate: float, dataset: EncodedDataset) -> TrainingSection:
    """`training` with the batch size, steps and learning rate of contrastive training, where the recipe sets none."""
    num_rows = sum(map(len, dataset.features["train"]))
    if "per_device_train_batch_size" not in training.model_fields_set:
        training = training.model_copy(update={"per_device_train_batch_size": BATCH_SIZE})
    rows_per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
    steps = min(MAX_STEPS, max(MIN_STEPS, math.ceil(num_rows / ROWS_PER_STEP)))
    chosen = {
        "num_train_epochs": math.ceil(steps / math.ceil(num_rows / rows_per_step)),
        "learning_rate": learning_rate,
        "warmup_ratio": WARMUP_RATIO if training.lr_scheduler_type != "constant" else 0.0,
    }
    if training.max_steps:
        del chosen["num_train_epochs"]
    unset = {key: value for key, value in chosen.items() if getattr(training, key) is None}
    return training.model_copy(update=unset)


def _describe(training: TrainingSection, dataset: EncodedDataset) -> str:
    length = f"{training.max_steps} steps" if training.max_steps else f"{training.num_train_epochs} epochs"
    return (
        f"Few rows per class (median {rows_per_class(dataset):g}): contrastive training for "
        f"{length} in batches of {training.per_device_train_batch_size}, then a linear probe "
        f"as head. auto chooses it up to {MAX_ROWS_PER_CLASS} rows; training.few_shot: off trains as usual."
    )

"""How long a run trains: epochs and patience from the number of training rows, where the recipe names none.

Small sets need many epochs for the same number of steps (decision 0037).
"""

import math

from peftlab.recipe import Recipe, TrainingSection
from peftlab.tuning.dataset import EncodedDataset
from peftlab.tuning.session import TuningSession

MIN_STEPS = 500
MIN_EPOCHS = 10
MAX_EPOCHS = 60
PATIENCE_STEPS = 200
PATIENCE_EPOCHS = 5


def choose_schedule(recipe: Recipe, dataset: EncodedDataset, session: TuningSession) -> Recipe:
    """The recipe with numbers for `num_train_epochs: null` and `early_stopping_patience: auto`; reports the epochs."""
    training, num_rows = recipe.training, sum(map(len, dataset.features["train"]))
    steps = steps_per_epoch(training, num_rows, session.process_group.world_size)
    from_rows = recipe.task.epochs_from_rows
    epochs = training.num_train_epochs or (default_epochs(steps) if from_rows else MIN_EPOCHS)
    patience = training.early_stopping_patience
    if patience == "auto":
        patience = default_patience(steps) if from_rows else PATIENCE_EPOCHS
    chosen = {"num_train_epochs": epochs, "early_stopping_patience": patience}
    if training.num_train_epochs is None and from_rows:
        session.progress.info(
            f"{epochs} epochs ({epochs * steps} steps): chosen from {num_rows} training rows; "
            "training.num_train_epochs sets it."
        )
    return recipe.model_copy(update={"training": training.model_copy(update=chosen)})


def steps_per_epoch(training: TrainingSection, num_rows: int, world_size: int = 1) -> int:
    """Optimizer steps in an epoch of `num_rows` training rows."""
    rows_per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps * world_size
    return max(1, math.ceil(num_rows / rows_per_step))


def default_epochs(steps: int) -> int:
    """Epochs of `steps` each that make at least MIN_STEPS, within MIN_EPOCHS and MAX_EPOCHS."""
    return min(MAX_EPOCHS, max(MIN_EPOCHS, math.ceil(MIN_STEPS / steps)))


def default_patience(steps: int) -> int:
    """Epochs of `steps` each without a better validation score: at least PATIENCE_EPOCHS, and PATIENCE_STEPS steps."""
    return max(PATIENCE_EPOCHS, math.ceil(PATIENCE_STEPS / steps))

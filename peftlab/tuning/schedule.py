"""How a run trains where the recipe does not say: learning rate, warmup, epochs and patience from the training rows.

Small sets need many epochs for the same number of steps, and learn better in fewer steps with a higher learning rate
(decisions 0037 and 0038).
"""

import math
from collections.abc import Mapping
from typing import Any

from peftlab.base import Base
from peftlab.recipe import Recipe, TrainingSection
from peftlab.tuning.dataset import EncodedDataset
from peftlab.tuning.few_shot.choice import choose_few_shot
from peftlab.tuning.session import TuningSession

MIN_STEPS = 500
MIN_STEPS_AT_RAISED_RATE = 300
MIN_EPOCHS = 10
MAX_EPOCHS = 60
PATIENCE_STEPS = 200
PATIENCE_EPOCHS = 5
FEW_ROWS, MANY_ROWS = 300, 3000
"""Up to the first number of rows `few_rows_factor` applies in full, from the second on not at all."""
MEASURED_WIDTH = 384
"""The hidden size of the base on which the factors were measured; wider bases get a smaller one."""
WARMUP_RATIO = 0.1


def choose_schedule(recipe: Recipe, dataset: EncodedDataset, base: Base, session: TuningSession) -> Recipe:
    """The recipe with numbers for all keys of its schedule that it does not set; reports what was chosen.

    Few rows per class get contrastive training and its schedule; see `choose_few_shot`.
    """
    recipe = choose_few_shot(recipe, dataset, session)
    num_rows = sum(map(len, dataset.features["train"]))
    steps = steps_per_epoch(recipe.training, num_rows, session.process_group.world_size)
    from_rows = recipe.task.epochs_from_rows
    chosen = schedule_from_rows(recipe, num_rows, steps, hidden_size(base)) if from_rows else fixed_schedule(recipe)
    if from_rows and chosen:
        session.progress.info(describe(chosen, recipe, num_rows, steps))
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=chosen)})


def schedule_from_rows(recipe: Recipe, num_rows: int, steps: int, width: int) -> dict[str, Any]:
    """The keys of `training` that the recipe does not set → values for `num_rows` rows in `steps` steps per epoch."""
    training, method = recipe.training, recipe.method
    has_factor = recipe.task.raises_rate_for_few_rows and not method.start_from
    factor = rate_factor(method.few_rows_factor, num_rows, width) if has_factor else 1.0
    is_raised = training.learning_rate is None and factor > 1
    return _unset_only(
        training,
        learning_rate=round_to_2_digits(factor * method.default_learning_rate),
        warmup_ratio=WARMUP_RATIO if is_raised and training.lr_scheduler_type != "constant" else 0.0,
        num_train_epochs=default_epochs(steps, MIN_STEPS_AT_RAISED_RATE if is_raised else MIN_STEPS),
        early_stopping_patience=default_patience(steps),
    )


def fixed_schedule(recipe: Recipe) -> dict[str, Any]:
    """The same for tasks whose schedule does not depend on the number of rows."""
    return _unset_only(
        recipe.training,
        learning_rate=recipe.method.default_learning_rate,
        warmup_ratio=0.0,
        num_train_epochs=MIN_EPOCHS,
        early_stopping_patience=PATIENCE_EPOCHS,
    )


def _unset_only(training: TrainingSection, *, early_stopping_patience: int, **chosen: float) -> dict[str, Any]:
    unset: dict[str, Any] = {key: value for key, value in chosen.items() if getattr(training, key) is None}
    if training.max_steps:
        unset.pop("num_train_epochs", None)
    if training.early_stopping_patience == "auto":
        unset["early_stopping_patience"] = early_stopping_patience
    return unset


def rate_factor(few_rows_factor: float, num_rows: int, width: int = MEASURED_WIDTH) -> float:
    """The learning rate for `num_rows` rows over the usual one of a method, on a base of hidden size `width`.

    Between FEW_ROWS and MANY_ROWS it changes with the logarithm of the number of rows.
    """
    share = math.log(MANY_ROWS / max(1, num_rows)) / math.log(MANY_ROWS / FEW_ROWS)
    narrow = min(1.0, MEASURED_WIDTH / width)
    return few_rows_factor ** (narrow * min(1.0, max(0.0, share)))


def hidden_size(base: Base) -> int:
    """The width of the base's hidden states, or MEASURED_WIDTH if its configuration does not say."""
    return getattr(base.model.config.get_text_config(), "hidden_size", None) or MEASURED_WIDTH


def round_to_2_digits(number: float) -> float:
    """`number` with two significant digits."""
    return float(f"{number:.2g}")


def describe(chosen: Mapping[str, Any], recipe: Recipe, num_rows: int, steps: int) -> str:
    """What was chosen, and which keys set it."""
    phrases = {
        "learning_rate": "learning rate {:g}",
        "warmup_ratio": "warmup {:.0%}",
        "num_train_epochs": f"{{}} epochs ({chosen.get('num_train_epochs', 0) * steps} steps)",
        "early_stopping_patience": "patience {} epochs",
    }
    named = {key: phrase.format(chosen[key]) for key, phrase in phrases.items() if chosen.get(key)}
    usual = recipe.method.default_learning_rate
    if chosen.get("learning_rate", usual) != usual:
        named["learning_rate"] += f" (usually {usual:g})"
    keys = ", ".join(f"training.{key}" for key in named)
    return f"Chosen from {num_rows} training rows: {', '.join(named.values())}. To set them: {keys}."


def steps_per_epoch(training: TrainingSection, num_rows: int, world_size: int = 1) -> int:
    """Optimizer steps in an epoch of `num_rows` training rows."""
    rows_per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps * world_size
    return max(1, math.ceil(num_rows / rows_per_step))


def total_steps(training: TrainingSection, num_rows: int, world_size: int = 1) -> int:
    """Optimizer steps of a run, unless it stops early."""
    return training.max_steps or steps_per_epoch(training, num_rows, world_size) * (training.num_train_epochs or 1)


def default_epochs(steps: int, min_steps: int = MIN_STEPS) -> int:
    """Epochs of `steps` each that make at least `min_steps`, within MIN_EPOCHS and MAX_EPOCHS."""
    return min(MAX_EPOCHS, max(MIN_EPOCHS, math.ceil(min_steps / steps)))


def default_patience(steps: int) -> int:
    """Epochs of `steps` each without a better validation score: at least PATIENCE_EPOCHS, and PATIENCE_STEPS steps."""
    return max(PATIENCE_EPOCHS, math.ceil(PATIENCE_STEPS / steps))

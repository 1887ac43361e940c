"""The trainers by the name that a task section gives, as in `TaskFields.trainer`."""

from collections.abc import Callable
from dataclasses import dataclass

from peftlab.errors import ErrorCollector
from peftlab.imports import LazyModule
from peftlab.recipe import Recipe
from peftlab.tuning.distributed.process_group import ProcessGroup
from peftlab.tuning.few_shot.trainer import ContrastiveTrainer
from peftlab.tuning.preference.dpo_checks import check_dpo
from peftlab.tuning.trainer import TaskTrainer

preference = LazyModule("peftlab.tuning.preference.trainer")  # imports TRL, which is an extra


def _no_requirements(recipe: Recipe, process_group: ProcessGroup, errors: ErrorCollector) -> None:
    """Check nothing: the trainer needs only what peftlab itself needs."""


def _preference_trainer() -> type[TaskTrainer]:
    trainer_class: type[TaskTrainer] = preference.PreferenceTrainer
    return trainer_class


@dataclass(frozen=True)
class TrainerRecord:
    """One way to train.

    Args:
        find_class: Imports and returns the trainer's class.
        check: Adds an error for each requirement of the trainer that is not met.
    """

    find_class: Callable[[], type[TaskTrainer]]
    check: Callable[[Recipe, ProcessGroup, ErrorCollector], None] = _no_requirements


TRAINERS = {
    "supervised": TrainerRecord(lambda: TaskTrainer),
    "contrastive": TrainerRecord(lambda: ContrastiveTrainer),
    "preference": TrainerRecord(_preference_trainer, check_dpo),
}
"""The record of each trainer."""


def trainer_record(recipe: Recipe) -> TrainerRecord:
    """The record of the trainer that the recipe needs."""
    return TRAINERS["contrastive" if recipe.training.few_shot == "contrastive" else recipe.task.trainer]

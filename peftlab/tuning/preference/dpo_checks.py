"""What preference tuning needs that other tasks do not; without torch, so that it is told at once."""

import importlib.metadata

from peftlab.errors import ErrorCollector
from peftlab.recipe import Recipe
from peftlab.tuning.distributed.process_group import ProcessGroup

TRL = "1.16"
INSTALL = "pip install 'peftlab[align]'"


def check_dpo(recipe: Recipe, process_group: ProcessGroup, errors: ErrorCollector) -> None:
    """Note what a recipe for preferences needs and this run has not: TRL, and batches of as many rows everywhere."""
    if recipe.task.type != "preference":
        return
    try:
        found = importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        errors.add("the package trl, which has the losses, is not installed.", key="task.type", hint=INSTALL)
    else:
        if not found.startswith(f"{TRL}."):
            errors.add(f"trl {found} is installed; this needs {TRL}.", key="task.type", hint=INSTALL)
    if process_group.world_size > 1 and recipe.training.train_sampling_strategy == "tokens":
        message = "TRL wants batches of as many rows in each process, and those by tokens differ."
        hint = "Take random: -o training.train_sampling_strategy=random"
        errors.add(message, key="training.train_sampling_strategy", hint=hint)

"""Requirements of preference tuning (DPO)."""

import importlib.metadata

from peftlab.errors import ErrorCollector
from peftlab.recipe import Recipe
from peftlab.tuning.distributed.process_group import ProcessGroup

TRL = "1.16"
INSTALL = "pip install 'peftlab[align]'"


def check_dpo(recipe: Recipe, process_group: ProcessGroup, errors: ErrorCollector) -> None:
    """Check what DPO requires: TRL, and equal batch sizes in all processes."""
    try:
        found = importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        errors.add("the package trl, which computes the loss, is not installed.", key="task.type", hint=INSTALL)
    else:
        if not found.startswith(f"{TRL}."):
            errors.add(f"trl {found} is installed; this needs {TRL}.", key="task.type", hint=INSTALL)
    if process_group.world_size > 1 and recipe.training.train_sampling_strategy == "tokens":
        message = "TRL needs equal batch sizes in all processes, and batches by tokens differ."
        hint = "Use random: -o training.train_sampling_strategy=random"
        errors.add(message, key="training.train_sampling_strategy", hint=hint)

"""Complete the task section of a recipe with settings that depend on the base model."""

from dataclasses import replace

from peftlab.base import find_base
from peftlab.errors import ErrorCollector
from peftlab.recipe import Recipe
from peftlab.recipe.compatibility import check_compatibility
from peftlab.tasks import TASKS
from peftlab.tasks.record import SectionCompleter
from peftlab.tuning.dataset import TuningDataset
from peftlab.tuning.session import TuningSession


def complete_task(recipe: Recipe, dataset: TuningDataset, session: TuningSession) -> tuple[Recipe, TuningDataset]:
    """Set what the task section leaves to the base model, and build the task again; most tasks leave nothing.

    Raises:
        RecipeError: the base does not fit the task, or the completed section cannot be combined with the recipe.
        BaseNotFoundError: the base was not found.
    """
    record = TASKS[recipe.task.type]
    if not record.complete_section:
        return recipe, dataset
    with session.process_group.sync_errors():
        completed = _complete_section(recipe, record.complete_section)
    if completed.task == recipe.task:
        return recipe, dataset
    task = record.build(**completed.task.model_dump(exclude={"type"}))
    with session.collect_errors() as errors:
        task.fit_labels(dataset.examples, errors)
    return completed, replace(dataset, task=task)


def _complete_section(recipe: Recipe, complete: SectionCompleter) -> Recipe:
    config = find_base(recipe.base).config
    with ErrorCollector() as errors:
        section = complete(recipe.task, recipe.base.model, config, errors)
    completed = recipe.model_copy(update={"task": section})
    if section != recipe.task:
        with ErrorCollector() as errors:
            check_compatibility(completed, errors)
    return completed

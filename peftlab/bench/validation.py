"""A recipe that is to be run in several ways: whether it can be, told before any time is spent."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftlab.base import find_base
from peftlab.data import load_rows
from peftlab.errors import ErrorCollector
from peftlab.recipe import Recipe, read_recipe
from peftlab.tasks import Task, build_task


def check_ways(recipe_path: str | Path, changes: Sequence[Mapping[str, Any]]) -> Recipe:
    """The recipe with the first of `changes` (dotted keys → values), after every one of them proved to be possible.

    Raises:
        RecipeError: the recipe or the data cannot be used.
        BaseNotFoundError: the base model is nowhere.
    """
    first, *_ = [read_recipe(recipe_path, overrides) for overrides in changes]
    fitted_task(first)
    find_base(first.base)
    return first


def fitted_task(recipe: Recipe) -> Task:
    """The recipe's task with what it learns from the rows, such as its labels.

    Raises:
        RecipeError: the data cannot be used.
    """
    with ErrorCollector() as errors:
        return build_task(recipe.task, load_rows(recipe.data, errors), errors)[0]

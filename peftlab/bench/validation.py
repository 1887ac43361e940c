"""Check a recipe in all setups of a benchmark before any time is spent."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftlab.base import find_base
from peftlab.data import load_rows
from peftlab.errors import ErrorCollector
from peftlab.recipe import Recipe, read_recipe
from peftlab.tasks import Task, build_task


def check_setups(recipe_path: str | Path, all_overrides: Sequence[Mapping[str, Any]]) -> Recipe:
    """Check a recipe with each of several overrides (dotted keys → values) → the recipe with the first of them.

    Raises:
        RecipeError: the recipe or the data cannot be used.
        BaseNotFoundError: the base model was not found.
    """
    first, *_ = [read_recipe(recipe_path, overrides) for overrides in all_overrides]
    build_fitted_task(first)
    find_base(first.base)
    return first


def build_fitted_task(recipe: Recipe) -> Task:
    """Build the task of a recipe, with what it fits to the rows, such as labels.

    Raises:
        RecipeError: the data cannot be used.
    """
    with ErrorCollector() as errors:
        return build_task(recipe.task, load_rows(recipe.data, errors), errors)[0]

"""`check()`: all that `tune` does before it trains."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.base import find_base
from peftlab.data import Ledger, load_rows
from peftlab.errors import BaseNotFoundError, ErrorCollector
from peftlab.imports import heavy_imports
from peftlab.recipe import PLAIN_TEXT_TASKS, Recipe, read_recipe
from peftlab.store import Store
from peftlab.tasks import Task, build_task
from peftlab.tuning.distributed.process_group import Processes
from peftlab.tuning.progress import Progress
from peftlab.tuning.warm_start import find_start

if TYPE_CHECKING:
    from peftlab.tuning.run import Run


@dataclass(frozen=True)
class Checked:
    """A recipe that can be tuned, as far as was seen.

    `ledgers` tell of the rows, by split. `run` has all that training needs; it is None where the base is not on this
    machine, and `missing` then says where it was looked for.
    """

    recipe: Recipe
    task: Task
    ledgers: dict[str, Ledger]
    run: "Run | None"
    missing: str = ""


def check(
    recipe_path: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    store: str | Path = "adapters",
    device: str = "auto",
    progress: Progress | None = None,
) -> Checked:
    """Read a recipe and its data, load its base, encode the rows and put the method on it.

    What can go wrong before training goes wrong here. Nothing is written. Arguments and errors are as for `tune`, but
    a base that is nowhere only ends the check early.
    """
    progress = progress or Progress()
    with ErrorCollector() as errors:
        recipe = read_recipe(recipe_path, overrides, errors)
        rows = load_rows(recipe.data, errors, plain=recipe.task.type in PLAIN_TEXT_TASKS)
        task, examples, ledgers = build_task(recipe.task, rows, errors)
        start = find_start(recipe, Store(store), errors)
    try:
        find_base(recipe.base)
    except BaseNotFoundError as error:
        return Checked(recipe, task, ledgers, None, missing=str(error))

    with heavy_imports():
        from peftlab.tuning.setup import prepare

    shared: dict[str, Any] = {"processes": Processes(), "device": device, "sharded": False, "start": start}
    return Checked(recipe, task, ledgers, prepare(recipe, rows, task, examples, ledgers, progress, **shared))

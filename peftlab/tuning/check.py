"""`check()`: everything that `tune()` does before it trains."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.base import find_base
from peftlab.data import Ledger
from peftlab.errors import BaseNotFoundError
from peftlab.recipe import Recipe, read_recipe
from peftlab.store import Store
from peftlab.tasks import Task
from peftlab.tuning import steps
from peftlab.tuning.dataset import load_dataset
from peftlab.tuning.distributed.backend_check import check_backend
from peftlab.tuning.measured_schedules import describe_measurement, nearest_measurement
from peftlab.tuning.progress import Progress
from peftlab.tuning.schedule import total_steps
from peftlab.tuning.session import TuningSession
from peftlab.tuning.warm_start import find_start_adapter

if TYPE_CHECKING:
    from peftlab.tuning.run import Run


@dataclass(frozen=True)
class CheckResult:
    """A recipe without errors.

    `ledgers` describe the rows, by split. `run` is ready to train; it is None if the base is not on this machine, and
    `missing` then lists the places that were searched.
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
) -> CheckResult:
    """Read a recipe and its data, load its base, encode the rows and add the adapter, without training or writing.

    Arguments and errors are those of `tune`, except that a missing base only ends the check early.
    """
    session = TuningSession(Store(store), device, progress=progress or Progress())
    with session.collect_errors() as errors:
        recipe = read_recipe(recipe_path, overrides, errors)
        dataset = load_dataset(recipe, errors)
        start = find_start_adapter(recipe, session.store, errors)
        check_backend(recipe.training.distributed, session, errors)
    try:
        find_base(recipe.base)
    except BaseNotFoundError as error:
        return CheckResult(recipe, dataset.task, dataset.ledgers, None, missing=str(error))
    recipe, dataset = steps.complete_task(recipe, dataset, session)
    base = steps.load_base(recipe, dataset.task, session)
    encoded = steps.encode(dataset, base, recipe, session)
    steps.probe_base(base, encoded, recipe, session)
    recipe = steps.choose_schedule(recipe, encoded, base, session)
    run = steps.add_adapter(base, recipe, encoded, start, session)
    steps.probe_run(run, session)
    _report_measurement(run, session.progress)
    return CheckResult(recipe, dataset.task, dataset.ledgers, run)


def _report_measurement(run: "Run", progress: Progress) -> None:
    num_rows = len(run.train_features)
    num_steps = total_steps(run.recipe.training, num_rows)
    if nearest := nearest_measurement(run.recipe, num_rows, num_steps):
        progress.info(describe_measurement(nearest))

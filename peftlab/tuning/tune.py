"""`tune()`: the whole way from a recipe to a published adapter. Read this first."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.data import Ledger, load_rows
from peftlab.errors import ErrorCollector
from peftlab.imports import heavy_imports
from peftlab.recipe import PLAIN_TEXT_TASKS, read_recipe
from peftlab.store import Adapter, Store
from peftlab.tasks import Scores, Task, build_task
from peftlab.tuning.distributed.process_group import Processes, check_engine
from peftlab.tuning.progress import Progress
from peftlab.tuning.warm_start import find_start


@dataclass(frozen=True)
class TuningResult:
    """A finished run: the published adapter, its scores and what became of the rows, by split, and its task."""

    adapter: Adapter
    scores: dict[str, Scores]
    ledgers: dict[str, Ledger]
    task: Task
    seconds: float


def tune(
    recipe_path: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    store: str | Path = "adapters",
    device: str = "auto",
    resume: bool = False,
    progress: Progress | None = None,
) -> TuningResult:
    """Train the small adapter that a recipe asks for, and publish it to a store.

    Under a launcher (torchrun, accelerate) each process calls it; the first tells and publishes, all get the result.

    Args:
        recipe_path: The recipe, a YAML file.
        overrides: Dotted recipe keys → values, as in `{"training.learning_rate": 5e-4}`; paths among them are
            relative to the current folder.
        store: Folder of the store; made if it is not there.
        device: auto, cpu, cuda or mps.
        resume: Go on from the last checkpoint of an interrupted run of the same recipe.
        progress: Is told what happens; nothing is printed.

    Raises:
        RecipeError: the recipe or the data cannot be used; lists every problem.
        BaseNotFoundError: the base model is nowhere.
        StoreError: the store cannot be written, checked before training.
        IntegrityError: the adapter, reloaded into a fresh base, does not answer as it did in training.
        TuningInterrupted: the user stopped the run; the message says how to go on.
        TuningDiverged: the weights were no numbers any more before an epoch was scored; the message says what to do.
        ProcessLostError: another process of the run has ended; the message says how to go on.
    """
    began, shelf, processes = time.monotonic(), Store(store), Processes.join(device)
    progress = progress if progress and processes.first else Progress()

    with processes.together(), ErrorCollector() as errors:  # everything wrong with recipe and data, told at once
        recipe = read_recipe(recipe_path, overrides, errors)
        rows = load_rows(recipe.data, errors, plain=recipe.task.type in PLAIN_TEXT_TASKS)
        task, examples, ledgers = build_task(recipe.task, rows, errors)
        start = find_start(recipe, shelf, errors)
        sharded = check_engine(recipe.training.distributed, processes, device, errors)

    # torch and its friends take seconds to import: only a recipe that can run has to wait for them
    with heavy_imports():
        from peftlab.tuning.distributed.backends import whole
        from peftlab.tuning.publish import write_adapter
        from peftlab.tuning.setup import prepare
        from peftlab.tuning.training import score, train

    with processes.together():
        shared: dict[str, Any] = {"processes": processes, "device": device, "sharded": sharded, "start": start}
        run = prepare(recipe, rows, task, examples, ledgers, progress, **shared)
    with processes.opened_by_first(shelf.tuning_run(recipe.name, run.checkpoint_bytes, resume=resume)) as folder:
        log = train(run, folder, resume=resume, progress=progress)
        run = whole(run, folder)
        scores = score(run, progress)
        seconds = time.monotonic() - began
        published = processes.from_first(
            lambda: str(shelf.publish(recipe.name, lambda target: write_adapter(run, log, scores, seconds, target)))
        )
    processes.leave()
    return TuningResult(shelf.resolve(published), scores, ledgers, run.task, seconds)

"""`tune()`: from a recipe to a published adapter. Read this first."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.data import Ledger
from peftlab.recipe import read_recipe
from peftlab.store import Adapter, BaselineInfo
from peftlab.tasks import Scores, Task
from peftlab.tuning import steps
from peftlab.tuning.dataset import load_dataset
from peftlab.tuning.distributed.backend_check import check_backend
from peftlab.tuning.progress import Progress
from peftlab.tuning.session import TuningSession
from peftlab.tuning.warm_start import find_start_adapter


@dataclass(frozen=True)
class TuningResult:
    """A finished run: the published adapter, its task, and by split its scores and the ledgers of its rows."""

    adapter: Adapter
    scores: dict[str, Scores]
    ledgers: dict[str, Ledger]
    task: Task

    @property
    def baselines(self) -> BaselineInfo | None:
        """The main score beside those of the majority and of a linear probe; None if the task has no such baselines."""
        return self.adapter.manifest.baselines

    @property
    def seconds(self) -> float:
        """How long the run took until it was published."""
        return self.adapter.manifest.seconds


def tune(
    recipe_path: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    store: str | Path = "adapters",
    device: str = "auto",
    resume: bool = False,
    publish_anyway: bool = False,
    progress: Progress | None = None,
) -> TuningResult:
    """Train the adapter that a recipe describes, and publish it to a store.

    Under a launcher (torchrun, accelerate) each process calls it. The main process reports progress and publishes; all
    get the result.

    Args:
        recipe_path: The recipe, a YAML file.
        overrides: Dotted recipe keys → values, as in `{"training.learning_rate": 5e-4}`; paths among them are
            relative to the current folder.
        store: Folder of the store; created if it does not exist.
        device: auto, cpu, cuda or mps.
        resume: Continue from the last checkpoint of an interrupted run of the same recipe.
        publish_anyway: Publish the adapter even if it is no better than the majority.
        progress: Receives what happens; nothing is printed.

    Raises:
        RecipeError: the recipe or the data cannot be used; lists every mistake.
        BaseNotFoundError: the base model was not found.
        StoreError: the store cannot be written; checked before training.
        IntegrityError: the adapter, reloaded into a fresh base, gives other outputs than in training.
        TuningInterrupted: the user stopped the run; the message says how to resume.
        NoBetterThanMajority: the adapter's main score is no better than that of the most frequent answer; the message
            says where it is kept.
        TuningDiverged: the weights became NaN or infinite before an epoch was scored; the message says what to do.
        ProcessLostError: another process of the run has ended; the message says how to resume.
    """
    with TuningSession.open(
        store, device=device, resume=resume, publish_anyway=publish_anyway, progress=progress
    ) as session:
        with session.collect_errors() as errors:  # every mistake is reported at once, before torch is imported
            recipe = read_recipe(recipe_path, overrides, errors)
            dataset = load_dataset(recipe, errors)
            start = find_start_adapter(recipe, session.store, errors)
            check_backend(recipe.training.distributed, session, errors)
        recipe, dataset = steps.complete_task(recipe, dataset, session)
        base = steps.load_base(recipe, dataset.task, session)
        encoded = steps.encode(dataset, base, recipe, session)
        steps.probe_base(base, encoded, recipe, session)
        recipe = steps.choose_schedule(recipe, encoded, base, session)
        baselines = steps.measure_baselines(base, recipe, encoded, session)
        run = steps.add_adapter(base, recipe, encoded, start, session, baselines)
        steps.probe_run(run, session)
        run = steps.train(run, session)
        scores = steps.evaluate(run, session)
        comparison = steps.check_baselines(run, scores, session)
        adapter = steps.publish(run, scores, comparison, session)
    return TuningResult(adapter, scores, dataset.ledgers, dataset.task)

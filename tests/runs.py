"""Runs that are ready to train, and a progress object that records losses and warnings."""

from peftlab.errors import ErrorCollector
from peftlab.recipe import read_recipe
from peftlab.store import Store
from peftlab.tuning import Progress, TuningSession, steps
from peftlab.tuning.dataset import load_dataset
from peftlab.tuning.warm_start import find_start_adapter


def prepared_run(file, overrides=None, store="adapters"):
    """The run of the recipe in `file`, ready to train on the CPU; its start adapter, if any, is in `store`."""
    session = TuningSession(Store(store), "cpu")
    with ErrorCollector() as errors:
        recipe = read_recipe(file, overrides, errors)
        dataset = load_dataset(recipe, errors)
        start = find_start_adapter(recipe, session.store, errors)
    recipe, dataset = steps.complete_task(recipe, dataset, session)
    base = steps.load_base(recipe, dataset.task, session)
    encoded = steps.encode(dataset, base, recipe, session)
    recipe = steps.choose_schedule(recipe, encoded, base, session)
    return steps.add_adapter(base, recipe, encoded, start, session)


class Losses(Progress):
    """Records the mean losses of a run, its warnings, and whether it stopped early."""

    def __init__(self):
        self.losses, self.warnings = [], []

    def on_step_end(self, step, loss):
        if loss is not None:
            self.losses.append(loss)

    def warn(self, message):
        self.warnings.append(message)

    def on_train_end(self, stopped_early):
        self.stopped_early = stopped_early

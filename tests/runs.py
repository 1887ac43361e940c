"""Runs of the main flow as they stand before training, and what is heard of them while they train."""

from peftlab.data import load_rows
from peftlab.errors import ErrorCollector
from peftlab.recipe import PLAIN_TEXT_TASKS, read_recipe
from peftlab.store import Store
from peftlab.tasks import build_task
from peftlab.tuning import Processes, Progress
from peftlab.tuning.setup import prepare
from peftlab.tuning.warm_start import find_start


def prepared_run(file, overrides=None, store="adapters"):
    """The run of the recipe in `file`, on the CPU; an adapter that it starts from is in `store`."""
    with ErrorCollector() as errors:
        recipe = read_recipe(file, overrides, errors)
        rows = load_rows(recipe.data, errors, plain=recipe.task.type in PLAIN_TEXT_TASKS)
        understood = build_task(recipe.task, rows, errors)
        start = find_start(recipe, Store(store), errors)
    place = {"processes": Processes(), "device": "cpu", "sharded": False}
    return prepare(recipe, rows, *understood, Progress(), **place, start=start)


class Losses(Progress):
    """The mean losses that a run tells, its warnings, and whether it lost patience."""

    def __init__(self):
        self.losses, self.warnings = [], []

    def step_done(self, step, loss):
        if loss is not None:
            self.losses.append(loss)

    def warn(self, message):
        self.warnings.append(message)

    def training_ended(self, stopped_early):
        self.stopped_early = stopped_early

"""Time from the start of `tune` to the first training steps: `python -m benchmarks.start_time`."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import click

from benchmarks.results import write_result
from peftlab.cli.progress import TuningDisplay
from peftlab.data import Ledger
from peftlab.tasks import Task
from peftlab.tasks.inputs.encoding import ProgressCallback
from peftlab.tuning import tune

CONDITIONS = """
`python -m benchmarks.start_time {recipe} --runs {runs}`

Seconds from the start of the process to each milestone, as wall-clock time and as CPU time. Each run is a separate
process, which stops after its second step. The first run has an empty cache folder, and later runs find the features in
it; the table has the minimum of the later runs. If other processes run at the same time, only CPU times are comparable.
Load average at the end: {load:.1f}.
"""
Milestone = tuple[float, float]


class StopAfterTwoSteps(BaseException):
    """Stop the run after the second step."""


class TuningTimer(TuningDisplay):
    """Record when each milestone is reached: seconds since `start_time`, and CPU seconds."""

    def __init__(self, start_time: float) -> None:
        super().__init__()
        self.start_time = start_time
        self.milestones: dict[str, Milestone] = {}
        self.record_milestone("commands imported")

    def record_milestone(self, milestone: str) -> None:
        """Record the milestone, unless it was recorded before."""
        self.milestones.setdefault(milestone, (time.time() - self.start_time, time.process_time()))

    def track_encoding(self, split: str) -> AbstractContextManager[ProgressCallback]:
        """See `Progress`."""
        self.record_milestone("recipe and data read, torch imported, base loaded")
        return super().track_encoding(split)

    def on_data_encoded(self, task: Task, ledgers: Mapping[str, Ledger]) -> None:
        """See `Progress`."""
        self.record_milestone("rows encoded")

    def on_base_loaded(self, base: Any, trained: int) -> None:
        """See `Progress`."""
        self.record_milestone("delta added")

    def on_train_begin(self, total_steps: int, epochs: int, done_steps: int) -> None:
        """See `Progress`."""
        self.record_milestone("training begins")

    def on_step_end(self, step: int, loss: float | None) -> None:
        """See `Progress`."""
        self.record_milestone(f"step {step} done")
        if step == 2:
            raise StopAfterTwoSteps


def watch_one(recipe: str, start_time: float) -> None:
    """Tune until the second step, and print the milestones as JSON."""
    watch = TuningTimer(start_time)
    with tempfile.TemporaryDirectory() as store:
        try:
            tune(recipe, store=store, progress=watch)
        except StopAfterTwoSteps:
            click.echo(json.dumps(watch.milestones))


def measured(recipe: str, cache: str) -> dict[str, Milestone]:
    """The milestones of a run in a new process."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.start_time", recipe, "--began", repr(time.time())]
    environment = {**os.environ, "PEFTLAB_CACHE": cache}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def row(milestone: str, first: Milestone, later: list[Milestone]) -> dict[str, Any]:
    """One row of the table."""
    clock, processor = (min(times) for times in zip(*later, strict=True))
    shown = {"first run, clock": first[0], "processor": first[1], "later runs, clock": clock, "processor ": processor}
    return {"station": milestone, **{name: f"{seconds:.2f}" for name, seconds in shown.items()}}


@click.command()
@click.argument("recipe", default="recipes/sentiment-shop.yaml")
@click.option("--runs", default=3, help="Number of later runs.")
@click.option("--began", "start_time", type=float, hidden=True)
def main(recipe: str, runs: int, start_time: float | None) -> None:
    """Measure, print and write."""
    if start_time is not None:
        watch_one(recipe, start_time)
        return
    with tempfile.TemporaryDirectory() as cache:
        first, *later = [measured(recipe, cache) for _ in range(1 + runs)]
    rows = [row(milestone, told, [run[milestone] for run in later]) for milestone, told in first.items()]
    benchmark_environment = CONDITIONS.format(recipe=recipe, runs=runs, load=os.getloadavg()[0])
    write_result("start-time", "Time until a recipe steps", rows, benchmark_environment)


if __name__ == "__main__":
    main()

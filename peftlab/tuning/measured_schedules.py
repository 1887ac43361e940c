"""The table of `benchmarks/schedule_table.py`, and the measurement that is nearest to a chosen schedule."""

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from peftlab.recipe import Recipe

TABLE = Path(__file__).with_name("measured_schedules.json")
SIMILAR_ROWS = 4
"""The largest ratio between a recipe's number of rows and that of a measurement that says something about it."""


@dataclass(frozen=True)
class MeasuredSchedule:
    """A mean score on test rows, and the data, method, peak learning rate and steps that gave it."""

    task: str
    data_set: str
    num_rows: int
    method: str
    rate: float
    num_steps: int
    metric: str
    seeds: int
    score: float

    @property
    def grid(self) -> tuple[str, str, int, str]:
        """What cells share that differ in rate and steps alone."""
        return self.task, self.data_set, self.num_rows, self.method

    @property
    def where(self) -> str:
        """The data."""
        return f"{self.data_set}, {self.num_rows} rows"

    def __str__(self) -> str:
        return f"learning rate {self.rate:g}, {self.num_steps} steps"

    def distance(self, num_rows: int, rate: float, num_steps: int) -> tuple[float, float]:
        """The logarithmic distance in rows, then in rate and steps."""
        schedule = abs(math.log(self.rate / rate)) + abs(math.log(self.num_steps / num_steps))
        return abs(math.log(self.num_rows / num_rows)), schedule


@cache
def load_table() -> tuple[MeasuredSchedule, ...]:
    """All measured cells."""
    return tuple(MeasuredSchedule(**row) for row in json.loads(TABLE.read_text(encoding="utf8")))


def nearest_measurement(recipe: Recipe, num_rows: int, num_steps: int) -> MeasuredSchedule | None:
    """The cell nearest to a recipe's schedule, of the same task and method and a similar number of rows, if any."""
    rate = recipe.training.learning_rate or recipe.method.default_learning_rate
    cells = [
        cell
        for cell in load_table()
        if (cell.task, cell.method) == (recipe.task.type, recipe.method.type)
        and 1 / SIMILAR_ROWS <= num_rows / cell.num_rows <= SIMILAR_ROWS
    ]
    return min(cells, key=lambda cell: cell.distance(num_rows, rate, num_steps), default=None)


def describe_measurement(nearest: MeasuredSchedule) -> str:
    """The cell, and the best one of the same data and method if it is another."""
    alike = [cell for cell in load_table() if cell.grid == nearest.grid]
    best = max(alike, key=lambda cell: cell.score)
    ending = "the best measured there" if best == nearest else f"the best measured there is {best.score:.3f} at {best}"
    return f"Nearest measured schedule: {nearest.where}, {nearest}: {nearest.metric} {nearest.score:.3f}; {ending}."

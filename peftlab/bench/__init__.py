"""Measurements on the user's own machine: one thing beside another, in one run, as ratios."""

from peftlab.bench.environment import Conditions, conditions
from peftlab.bench.processes import Measured, measure, warm_up
from peftlab.bench.runtime import BatchTime, LoadTime, time_batches, time_loading
from peftlab.bench.step_time import StepTime, time_steps
from peftlab.bench.summary import Summary, TimedRun, summarize
from peftlab.bench.tuning import Way, compare_ways, ways_of_tuning

__all__ = [
    "BatchTime",
    "Conditions",
    "LoadTime",
    "Measured",
    "StepTime",
    "Summary",
    "TimedRun",
    "Way",
    "compare_ways",
    "conditions",
    "measure",
    "summarize",
    "time_batches",
    "time_loading",
    "time_steps",
    "warm_up",
    "ways_of_tuning",
]

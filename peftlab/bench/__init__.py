"""Benchmarks on the user's own machine: all alternatives run in turn, and results are ratios between them."""

from peftlab.bench.environment import BenchmarkEnvironment, benchmark_environment
from peftlab.bench.processes import ProcessResult, run_process, warm_up
from peftlab.bench.runtime import BatchTime, LoadTime, time_batches, time_loading
from peftlab.bench.step_time import StepTime, time_steps
from peftlab.bench.summary import RunTime, Summary, summarize
from peftlab.bench.tuning import Setup, compare_setups, tuning_setups

__all__ = [
    "BatchTime",
    "BenchmarkEnvironment",
    "LoadTime",
    "ProcessResult",
    "RunTime",
    "Setup",
    "StepTime",
    "Summary",
    "benchmark_environment",
    "compare_setups",
    "run_process",
    "summarize",
    "time_batches",
    "time_loading",
    "time_steps",
    "tuning_setups",
    "warm_up",
]

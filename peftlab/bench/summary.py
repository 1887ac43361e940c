"""Summarize runs over seeds: time and memory as ratios to a baseline, and the mean and deviation of scores."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RunTime:
    """One whole tuning run in one setup (`way`); `parts` are the seconds of start, training, evaluation and end."""

    way: str
    seed: int
    seconds: float
    peak_bytes: int | None
    score: float
    parts: dict[str, float]


@dataclass(frozen=True)
class Summary:
    """One setup (`way`) over all seeds, compared with the baseline.

    `ratio` is the median over seeds of its wall time divided by the baseline's with the same seed; `peak_ratio` is the
    same for memory. `parts` are medians too, relative to the baseline's whole time. `score_sd` is None for one seed.
    """

    way: str
    ratio: float
    seconds: float
    peak_ratio: float | None
    peak_bytes: float | None
    score: float
    score_sd: float | None
    parts: dict[str, float]


def summarize(runs: Sequence[RunTime], baseline_name: str) -> list[Summary]:
    """Summarize each setup, in the order of the first runs; every setup has one run per seed."""
    baselines = {run.seed: run for run in runs if run.way == baseline_name}
    ways = dict.fromkeys(run.way for run in runs)
    return [_summary([run for run in runs if run.way == way], baselines) for way in ways]


def _summary(runs: Sequence[RunTime], baselines: dict[int, RunTime]) -> Summary:
    pairs = [(run, baselines[run.seed]) for run in runs]
    peaks = [(run.peak_bytes, baseline.peak_bytes) for run, baseline in pairs if run.peak_bytes and baseline.peak_bytes]
    scores = [run.score for run in runs]
    return Summary(
        way=runs[0].way,
        ratio=statistics.median(run.seconds / baseline.seconds for run, baseline in pairs),
        seconds=statistics.median(run.seconds for run in runs),
        peak_ratio=statistics.median(peak / baseline for peak, baseline in peaks) if peaks else None,
        peak_bytes=statistics.median(peak for peak, _ in peaks) if peaks else None,
        score=statistics.mean(scores),
        score_sd=statistics.stdev(scores) if len(scores) > 1 else None,
        parts={
            part: statistics.median(run.parts[part] / baseline.seconds for run, baseline in pairs)
            for part in runs[0].parts
        },
    )

"""Several runs of several ways → one line a way: time and memory as ratios to one of them, scores with their spread."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TimedRun:
    """One whole tuning run. `parts` are the seconds of start, training, evaluation and end."""

    way: str
    seed: int
    seconds: float
    peak_bytes: int | None
    score: float
    parts: dict[str, float]


@dataclass(frozen=True)
class Summary:
    """One way over all seeds, beside the way it is compared with.

    `ratio` is the median over seeds of its wall time divided by the other's with the same seed, `peak_ratio` likewise;
    `parts` are medians too, each a share of the other's whole time. `score_sd` is None for a single seed.
    """

    way: str
    ratio: float
    seconds: float
    peak_ratio: float | None
    peak_bytes: float | None
    score: float
    score_sd: float | None
    parts: dict[str, float]


def summarize(runs: Sequence[TimedRun], against: str) -> list[Summary]:
    """One summary a way, in the order of their first runs; every way has one run for each seed."""
    rivals = {run.seed: run for run in runs if run.way == against}
    ways = dict.fromkeys(run.way for run in runs)
    return [_summary([run for run in runs if run.way == way], rivals) for way in ways]


def _summary(runs: Sequence[TimedRun], rivals: dict[int, TimedRun]) -> Summary:
    pairs = [(run, rivals[run.seed]) for run in runs]
    peaks = [(run.peak_bytes, rival.peak_bytes) for run, rival in pairs if run.peak_bytes and rival.peak_bytes]
    scores = [run.score for run in runs]
    return Summary(
        way=runs[0].way,
        ratio=statistics.median(run.seconds / rival.seconds for run, rival in pairs),
        seconds=statistics.median(run.seconds for run in runs),
        peak_ratio=statistics.median(mine / other for mine, other in peaks) if peaks else None,
        peak_bytes=statistics.median(mine for mine, _ in peaks) if peaks else None,
        score=statistics.mean(scores),
        score_sd=statistics.stdev(scores) if len(scores) > 1 else None,
        parts={
            part: statistics.median(run.parts[part] / rival.seconds for run, rival in pairs) for part in runs[0].parts
        },
    )

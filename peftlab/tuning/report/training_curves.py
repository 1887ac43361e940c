"""A plot of training loss and validation score over epochs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftlab.imports import matplotlib
from peftlab.tuning.report.epoch_losses import mean_epoch_losses


def draw_curves(
    log: Sequence[dict[str, float]],
    main_score: str,
    title: str,
    file: Path,
    *,
    smaller_is_better: bool = False,
    keeps_latest_tie: bool = False,
) -> None:
    """Write a PNG from Trainer's log, with the best epoch marked: of equal ones the first, or the latest.

    Without validation scores in the log, only the loss is drawn.
    """
    losses = mean_epoch_losses(log).items()
    scores = [(entry["epoch"], entry[f"eval_{main_score}"]) for entry in log if f"eval_{main_score}" in entry]
    figure = matplotlib.figure.Figure(figsize=(9 if scores else 5, 3.4), layout="constrained")
    left, *others = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
    figure.suptitle(title, parse_math=False)
    left.plot(*zip(*losses, strict=True), color="#4c72b0", marker="o", markersize=3, linewidth=1.2)
    left.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    for right in others:
        candidates = scores[::-1] if keeps_latest_tie else scores
        best = (min if smaller_is_better else max)(candidates, key=lambda point: point[1])
        _draw_scores(right, scores, best, main_score, smaller_is_better)
    for axes in (left, *others):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(file, dpi=110)


Point = tuple[float, float]


def _draw_scores(axes: Any, scores: Sequence[Point], best: Point, main_score: str, smaller_is_better: bool) -> None:
    axes.plot(*zip(*scores, strict=True), color="#55a868", marker="o", markersize=3, linewidth=1.2)
    axes.plot(*best, marker="o", markersize=9, fillstyle="none", color="#c44e52")
    axes.annotate(f"{best[1]:.3f}", best, textcoords="offset points", xytext=(0, -16), ha="center", color="#c44e52")
    top = None if smaller_is_better else 1
    axes.set(xlabel="epoch", ylabel=f"validation {main_score}", ylim=(min(0.0, *(score for _, score in scores)), top))

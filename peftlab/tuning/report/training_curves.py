"""A plot of training loss and validation score over epochs."""

from collections.abc import Sequence
from pathlib import Path

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
    """Write a PNG from Trainer's log, with the best epoch marked: of equal ones the first, or the latest."""
    losses = mean_epoch_losses(log).items()
    scores = [(entry["epoch"], entry[f"eval_{main_score}"]) for entry in log if f"eval_{main_score}" in entry]
    figure = matplotlib.figure.Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(title, parse_math=False)
    left.plot(*zip(*losses, strict=True), color="#4c72b0", marker="o", markersize=3, linewidth=1.2)
    left.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    right.plot(*zip(*scores, strict=True), color="#55a868", marker="o", markersize=3, linewidth=1.2)
    candidates = scores[::-1] if keeps_latest_tie else scores
    epoch, best = (min if smaller_is_better else max)(candidates, key=lambda point: point[1])
    right.plot(epoch, best, marker="o", markersize=9, fillstyle="none", color="#c44e52")
    right.annotate(
        f"{best:.3f}", (epoch, best), textcoords="offset points", xytext=(0, -16), ha="center", color="#c44e52"
    )
    top = None if smaller_is_better else 1
    right.set(xlabel="epoch", ylabel=f"validation {main_score}", ylim=(min(0.0, *(score for _, score in scores)), top))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(file, dpi=110)

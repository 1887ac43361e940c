"""A reliability diagram: how often predictions of each confidence are right (DeGroot and Fienberg 1983)."""

from pathlib import Path

from peftlab.imports import matplotlib
from peftlab.tasks import Calibration


def draw_reliability(calibration: Calibration, title: str, file: Path) -> None:
    """Write a PNG with a point for each bin; its area shows the number of predictions, the diagonal is the ideal."""
    figure = matplotlib.figure.Figure(figsize=(4.6, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1)
    axes.plot(calibration.confidences, calibration.accuracies, color="#4c72b0", linewidth=1.2)
    largest = max(calibration.counts)
    axes.scatter(
        calibration.confidences,
        calibration.accuracies,
        s=[90 * count / largest for count in calibration.counts],
        color="#4c72b0",
        clip_on=False,
        zorder=3,
    )
    axes.annotate(str(calibration).replace(", ", "\n"), (0.03, 0.97), va="top", fontsize=9)
    axes.set(xlabel="mean probability of the bin", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    axes.set_aspect("equal")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    figure.savefig(file, dpi=110)

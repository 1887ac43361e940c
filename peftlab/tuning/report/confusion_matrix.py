"""A plot of the confusion matrix: gold labels in rows, predicted labels in columns, as shares of the gold count."""

from pathlib import Path
from typing import Any

from peftlab.imports import matplotlib
from peftlab.tasks import Confusion

MAX_LABELS_WITH_COUNTS = 25  # with more labels, cells show no counts


def draw_confusion(confusion: Confusion, title: str, file: Path) -> None:
    """Write a PNG."""
    num_labels = len(confusion.labels)
    show_counts = num_labels <= MAX_LABELS_WITH_COUNTS
    side = min(18.0, 3.2 + 0.42 * num_labels if show_counts else 4.0 + 0.16 * num_labels)
    shares = [[cell / max(1, sum(row)) for cell in row] for row in confusion.counts]
    figure = matplotlib.figure.Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.045, label="share of the gold label")
    rotation, alignment = (90, "center") if num_labels > 6 else (30, "right")
    axes.set_xticks(range(num_labels), confusion.labels, rotation=rotation, ha=alignment)
    axes.set_yticks(range(num_labels), confusion.labels)
    axes.tick_params(labelsize=9 if show_counts else 6)
    axes.set(xlabel="predicted", ylabel="gold")
    if show_counts:
        _write_counts(axes, confusion, shares)
    figure.savefig(file, dpi=110)


def _write_counts(axes: Any, confusion: Confusion, shares: list[list[float]]) -> None:
    for i, row in enumerate(confusion.counts):
        for j, cell in enumerate(row):
            if cell:
                color = "white" if shares[i][j] > 0.5 else "black"
                axes.text(j, i, str(cell), ha="center", va="center", color=color)

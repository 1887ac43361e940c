"""A plot of the confusion matrix: gold labels in rows, predicted labels in columns, as shares of the gold count."""

import warnings
from pathlib import Path
from typing import Any

from peftlab.imports import matplotlib
from peftlab.tasks import Confusion

MAX_LABEL_LENGTH = 40
MAX_LABELS_WITH_COUNTS = 25  # with more labels, cells show no counts


def draw_confusion(confusion: Confusion, title: str, file: Path) -> None:
    """Write a PNG."""
    labels = [shorten(label) for label in confusion.labels]
    num_labels = len(labels)
    show_counts = num_labels <= MAX_LABELS_WITH_COUNTS
    side = min(18.0, 3.2 + 0.42 * num_labels if show_counts else 4.0 + 0.16 * num_labels)
    shares = [[cell / max(1, sum(row)) for cell in row] for row in confusion.counts]
    figure = matplotlib.figure.Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, parse_math=False)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.045, label="share of the gold label")
    rotation, alignment = (90, "center") if num_labels > 6 else (30, "right")
    axes.set_xticks(range(num_labels), labels, rotation=rotation, ha=alignment, parse_math=False)
    axes.set_yticks(range(num_labels), labels, parse_math=False)
    axes.tick_params(labelsize=9 if show_counts else 6)
    axes.set(xlabel="predicted", ylabel="gold")
    if show_counts:
        _write_counts(axes, confusion, shares)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a script that the font lacks is drawn as boxes
        figure.savefig(file, dpi=110)


def shorten(label: str) -> str:
    """A label on one line, of at most `MAX_LABEL_LENGTH` characters, without characters that no font has."""
    line = "".join(char if char.isprintable() else " " for char in label)
    return line if len(line) <= MAX_LABEL_LENGTH else f"{line[: MAX_LABEL_LENGTH - 1]}…"


def _write_counts(axes: Any, confusion: Confusion, shares: list[list[float]]) -> None:
    for i, row in enumerate(confusion.counts):
        for j, cell in enumerate(row):
            if cell:
                color = "white" if shares[i][j] > 0.5 else "black"
                axes.text(j, i, str(cell), ha="center", va="center", color=color)

"""The confusion of labels as a picture: gold labels down, predicted ones across, in shares of the gold count."""

from pathlib import Path

from peftlab.tasks import Confusion

MOST_COUNTED = 25  # labels up to which cells hold their counts


def draw_confusion(confusion: Confusion, title: str, file: Path) -> None:
    """Write a PNG."""
    from matplotlib.figure import Figure  # a third of a second, which only the end of a run needs

    count = len(confusion.labels)
    side = min(18.0, 3.2 + 0.42 * count) if count <= MOST_COUNTED else min(18.0, 4.0 + 0.16 * count)
    shares = [[cell / max(1, sum(row)) for cell in row] for row in confusion.counts]
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.045, label="share of the gold label")
    size = 9 if count <= MOST_COUNTED else 6
    axes.set_xticks(
        range(count), confusion.labels, rotation=90 if count > 6 else 30, ha="right" if count <= 6 else "center"
    )
    axes.set_yticks(range(count), confusion.labels)
    axes.tick_params(labelsize=size)
    axes.set(xlabel="predicted", ylabel="gold")
    if count <= MOST_COUNTED:
        for i, row in enumerate(confusion.counts):
            for j, cell in enumerate(row):
                if cell:
                    axes.text(
                        j, i, str(cell), ha="center", va="center", color="white" if shares[i][j] > 0.5 else "black"
                    )
    figure.savefig(file, dpi=110)

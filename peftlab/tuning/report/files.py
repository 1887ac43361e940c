"""The files of an adapter that only people read: plots and model card. None of them can cost the adapter."""

from collections.abc import Callable, Mapping
from pathlib import Path

from peftlab.store import Manifest, main_split
from peftlab.tasks import Scores
from peftlab.tuning.report.confusion_matrix import draw_confusion
from peftlab.tuning.report.model_card import model_card
from peftlab.tuning.report.reliability_diagram import draw_reliability
from peftlab.tuning.report.training_curves import draw_curves
from peftlab.tuning.run import Run

CURVES, CONFUSION, RELIABILITY, CARD = "curves.png", "confusion.png", "reliability.png", "README.md"


def draw_plots(run: Run, scores: Mapping[str, Scores], folder: Path, warn: Callable[[str], None]) -> None:
    """Draw the training curves, and the confusion of labels and the reliability diagram if the last split has them."""
    title = f"{run.recipe.name}: {run.recipe.method.type} on {run.base.files.model}"
    with_curves = {
        "smaller_is_better": not run.task.metric.greater_is_better,
        "keeps_latest_tie": run.keeps_latest_tie,
    }
    write_or_warn(
        folder / CURVES, lambda file: draw_curves(run.log, run.task.metric.name, title, file, **with_curves), warn
    )
    split = main_split(scores)
    if split is None:
        return
    title = f"{run.recipe.name}, {split}"
    if confusion := scores[split].confusion:
        write_or_warn(folder / CONFUSION, lambda file: draw_confusion(confusion, title, file), warn)
    if calibration := scores[split].calibration:
        write_or_warn(folder / RELIABILITY, lambda file: draw_reliability(calibration, title, file), warn)


def write_card(run: Run, manifest: Manifest, recipe: str, folder: Path, warn: Callable[[str], None]) -> None:
    """Write the model card with the plots that were drawn, or a short one if that fails."""
    plots = {name for name in (CURVES, CONFUSION, RELIABILITY) if (folder / name).is_file()}

    def write(file: Path) -> None:
        file.write_text(model_card(manifest, recipe, run.base, plots), encoding="utf8")

    write_or_warn(folder / CARD, write, warn)
    if not (folder / CARD).exists():
        short = f"---\nlibrary_name: peft\n---\n\n# {manifest.name}\n\n```yaml\n{recipe}```\n"
        (folder / CARD).write_text(short, encoding="utf8")


def write_or_warn(file: Path, write: Callable[[Path], None], warn: Callable[[str], None]) -> None:
    """Write a file, or warn that the adapter is published without it.

    Raises:
        OSError: the disk is full or not writable, so that the adapter cannot be written either.
    """
    try:
        write(file)
    except OSError:
        raise
    except Exception as error:  # libraries for plots raise many types for text that they cannot show
        file.unlink(missing_ok=True)
        reason = (str(error).splitlines() or [""])[0]
        warn(
            f"{file.name} could not be made ({type(error).__name__}: {reason}). The adapter is published all the same."
        )

"""The plots of a run are drawn with the right content."""

import numpy as np
import pytest
from matplotlib.image import imread

import peftlab
from peftlab.tasks import Confusion
from peftlab.tuning.report.confusion_matrix import draw_confusion
from peftlab.tuning.report.epoch_losses import mean_epoch_losses
from peftlab.tuning.report.training_curves import draw_curves
from tests.task_stores import recipe_for

pytestmark = pytest.mark.usefixtures("with_plots")


def colors(file):
    """The colors of an image as integers, and its size."""
    pixels = imread(file)
    height, width, _ = pixels.shape
    shades = np.unique((255 * pixels[..., :3]).round().astype(int).reshape(-1, 3), axis=0)
    return set(map(tuple, shades.tolist())), (width, height)


@pytest.mark.parametrize("smaller_is_better", [False, True])
def test_training_curves_mark_best_epoch(tmp_path, smaller_is_better):
    log = [{"epoch": (i + 1) / 4, "loss": 1 / (i + 1), "step": i + 1} for i in range(12)]
    log += [{"epoch": float(epoch), "eval_f1": score} for epoch, score in enumerate((0.2, 0.6, 0.4), start=1)]
    draw_curves(log, "f1", "curves", tmp_path / "curves.png", smaller_is_better=smaller_is_better)
    shades, size = colors(tmp_path / "curves.png")
    assert size == (990, 374)
    assert {(0x4C, 0x72, 0xB0), (0x55, 0xA8, 0x68), (0xC4, 0x4E, 0x52)} <= shades


def test_epoch_loss_is_mean_over_all_its_steps():
    log = [
        {"epoch": 0.5, "loss": 3.0, "step": 4},
        {"epoch": 1.0, "loss": 1.0, "step": 8},
        {"epoch": 1.0, "eval_f1": 0.5, "step": 8},
        {"epoch": 1.5, "loss": 0.5, "step": 12},
        {"epoch": 2.0 + 1e-9, "loss": 0.1, "step": 13},
    ]
    assert mean_epoch_losses(log) == {1: 2.0, 2: pytest.approx((4 * 0.5 + 0.1) / 5)}


@pytest.mark.parametrize("labels", [3, 30])
def test_confusion_matrix_colors(tmp_path, labels):
    counts = [[4 if i == j else 0 for j in range(labels)] for i in range(labels)]
    confusion = Confusion(labels=[f"label {i}" for i in range(labels)], counts=counts)
    draw_confusion(confusion, "confusion", tmp_path / "confusion.png")
    shades, (width, height) = colors(tmp_path / "confusion.png")
    assert width > height > 300
    assert {(247, 251, 255), (8, 48, 107)} <= shades  # the ends of matplotlib's Blues


def test_tune_writes_plots(tmp_path, tiny_base):
    folder = peftlab.tune(recipe_for(tmp_path, tiny_base, "classes"), store=tmp_path / "store").adapter.folder
    for name in ("curves.png", "confusion.png"):
        assert len(colors(folder / name)[0]) > 10

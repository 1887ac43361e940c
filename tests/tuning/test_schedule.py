"""Epochs and patience chosen from the number of training rows."""

import pytest

import peftlab
from peftlab.errors import TuningInterrupted
from peftlab.recipe import read_recipe
from peftlab.tuning import tune
from peftlab.tuning.schedule import default_epochs, default_patience, steps_per_epoch
from tests.language_models import build_language_model, instruction_recipe
from tests.tuning.test_tune import ProgressRecorder, equal, weights

BY_ROWS = {"training.num_train_epochs": None, "training.per_device_train_batch_size": 1}
"""Overrides with which the 12 rows of the test recipe make 12 steps per epoch."""


class InfoRecorder(ProgressRecorder):
    """Records information beside what a ProgressRecorder records."""

    def __init__(self, **options):
        super().__init__(**options)
        self.infos = []

    def info(self, message):
        self.infos.append(message)


@pytest.mark.parametrize(
    ("num_rows", "epochs", "patience"),
    [(1, 60, 200), (16, 60, 200), (130, 56, 23), (300, 27, 11), (800, 10, 5), (100_000, 10, 5)],
)
def test_default_epochs_and_patience_by_rows(write_recipe, num_rows, epochs, patience):
    training = read_recipe(write_recipe(training={"per_device_train_batch_size": 16})).training
    steps = steps_per_epoch(training, num_rows)
    assert (default_epochs(steps), default_patience(steps)) == (epochs, patience)


def test_steps_per_epoch_counts_accumulation_and_processes(write_recipe):
    training = read_recipe(write_recipe(training={"gradient_accumulation_steps": 2})).training
    assert steps_per_epoch(training, 17, world_size=2) == 2


def test_chosen_epochs_are_reported_and_published(write_recipe, tmp_path):
    progress = InfoRecorder()
    recipe = write_recipe()
    first = tune(recipe, store=tmp_path / "store", overrides=BY_ROWS, progress=progress)
    note = "42 epochs (504 steps): chosen from 12 training rows; training.num_train_epochs sets it."
    assert note in progress.infos
    assert progress.started[:2] == (504, 42)
    published = read_recipe(first.adapter.folder / "recipe.yaml").training
    assert (published.num_train_epochs, published.early_stopping_patience) == (42, 17)


def test_named_epochs_and_patience_are_kept(write_recipe, tmp_path):
    progress = InfoRecorder()
    checked = peftlab.check(write_recipe(training={"early_stopping_patience": None}), device="cpu", progress=progress)
    assert (checked.run.recipe.training.num_train_epochs, checked.run.recipe.training.early_stopping_patience) == (
        2,
        None,
    )
    assert not [message for message in progress.infos if "epochs" in message]


def test_language_model_defaults_ignore_rows(tmp_path):
    base = build_language_model(tmp_path / "llama")
    recipe = instruction_recipe(tmp_path / "rows", base, training={"num_train_epochs": None})
    training = peftlab.check(recipe, device="cpu").run.recipe.training
    assert (training.num_train_epochs, training.early_stopping_patience) == (10, 5)


def test_resume_keeps_chosen_epochs(write_recipe, tmp_path):
    recipe, changes = write_recipe(), {"training.num_train_epochs": None, "training.early_stopping_patience": 1}
    straight = tune(recipe, store=tmp_path / "straight", overrides=changes)
    with pytest.raises(TuningInterrupted, match="after step 4 of 180"):
        tune(recipe, store=tmp_path / "store", overrides=changes, progress=ProgressRecorder(interrupt_at=4))
    resumed = tune(recipe, store=tmp_path / "store", overrides=changes, resume=True)
    assert equal(weights(straight.adapter), weights(resumed.adapter))

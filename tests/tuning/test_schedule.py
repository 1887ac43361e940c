"""Epochs and patience chosen from the number of training rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import peftlab
from benchmarks import schedule_table
from benchmarks.results import load_runs
from peftlab.errors import TuningInterrupted
from peftlab.recipe import read_recipe
from peftlab.tuning import tune
from peftlab.tuning.measured_schedules import TABLE, describe_measurement, nearest_measurement
from peftlab.tuning.schedule import default_epochs, default_patience, rate_factor, schedule_from_rows, steps_per_epoch
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


def test_chosen_schedule_is_reported_and_published(write_recipe, tmp_path):
    progress = InfoRecorder()
    recipe = write_recipe()
    overrides = BY_ROWS | {"training.learning_rate": None}
    first = tune(recipe, store=tmp_path / "store", overrides=overrides, progress=progress)
    note = (
        "Chosen from 12 training rows: learning rate 0.003 (usually 0.001), warmup 10%, 25 epochs (300 steps), "
        "patience 17 epochs. To set them: training.learning_rate, training.warmup_ratio, training.num_train_epochs, "
        "training.early_stopping_patience."
    )
    assert note in progress.infos
    assert progress.started[:2] == (300, 25)
    published = read_recipe(first.adapter.folder / "recipe.yaml").training
    assert (published.num_train_epochs, published.early_stopping_patience) == (25, 17)
    assert (published.learning_rate, published.warmup_ratio) == (3e-3, 0.1)


@pytest.mark.parametrize(
    ("num_rows", "width", "factor"),
    [(16, 384, 3), (300, 384, 3), (3000, 384, 1), (50_000, 384, 1), (100, 64, 3), (100, 768, 3**0.5)],
)
def test_rate_factor_by_rows_and_width(num_rows, width, factor):
    assert rate_factor(3, num_rows, width) == pytest.approx(factor)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.sampled_from([0.3, 1.0, 3.0, 10.0]))
def test_rate_factor_is_monotonic_and_between_1_and_that_of_few_rows(few, many, factor):
    few, many = sorted((few, many))
    lower, upper = sorted((1.0, factor))
    assert lower <= rate_factor(factor, many) <= upper
    assert abs(rate_factor(factor, many) - 1) <= abs(rate_factor(factor, few) - 1)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, (3e-3, 0.1)),
        ({"training.learning_rate": 1e-3}, (1e-3, 0.0)),
        ({"training.learning_rate": 5e-3, "training.warmup_ratio": 0.3}, (5e-3, 0.3)),
        ({"training.warmup_ratio": 0.0}, (3e-3, 0.0)),
        ({"training.lr_scheduler_type": "constant"}, (3e-3, 0.0)),  # Transformers has no warmup there
        ({"method": {"type": "ia3"}}, (3e-2, 0.0)),
        ({"method": {"type": "bottleneck"}}, (3e-3, 0.0)),
        ({"method": {"type": "lora", "loraplus_lr_ratio": 16.0}}, (1e-3, 0.0)),
    ],
)
def test_rate_and_warmup_of_few_rows(write_recipe, overrides, expected):
    overrides = {"training.learning_rate": None} | overrides
    training = peftlab.check(write_recipe(), device="cpu", overrides=overrides).run.recipe.training
    assert (training.learning_rate, training.warmup_ratio) == expected
    assert training.num_train_epochs == 2


def test_run_that_starts_from_an_adapter_takes_the_usual_rate(write_recipe):
    recipe = read_recipe(write_recipe(), {"method.start_from": "other", "training.learning_rate": None})
    assert schedule_from_rows(recipe, 100, 7, 384)["learning_rate"] == 1e-3


def test_named_epochs_and_patience_are_kept(write_recipe, tmp_path):
    progress = InfoRecorder()
    checked = peftlab.check(write_recipe(training={"early_stopping_patience": None}), device="cpu", progress=progress)
    assert (checked.run.recipe.training.num_train_epochs, checked.run.recipe.training.early_stopping_patience) == (
        2,
        None,
    )
    assert not [message for message in progress.infos if "epochs" in message or "warmup" in message]


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


def test_check_quotes_the_nearest_measured_schedule(write_recipe):
    progress = InfoRecorder()
    peftlab.check(write_recipe(), device="cpu", progress=progress)
    assert not [message for message in progress.infos if "measured" in message]  # 12 rows are far from all of them
    recipe = read_recipe(write_recipe(), {"training.learning_rate": 1e-3})
    nearest = nearest_measurement(recipe, 200, 300)
    assert describe_measurement(nearest) == (
        "Nearest measured schedule: CrossNER politics, 200 rows, learning rate 0.001, 260 steps: f1 0.614; the best "
        "measured there is 0.637 at learning rate 0.003, 260 steps."
    )


def test_nearest_measurement_is_of_the_same_task_and_method_and_similar_rows(write_recipe):
    for method in ("ia3", "prefix"):
        recipe = read_recipe(write_recipe(), {"method": {"type": method}})
        nearest = nearest_measurement(recipe, 150, 300)
        assert (nearest.task, nearest.method) == ("token-classification", method)
    assert nearest_measurement(recipe, 5000, 300) is None
    assert nearest_measurement(read_recipe(write_recipe(), {"method": {"type": "last-layers"}}), 150, 300) is None


def test_packaged_table_is_that_of_the_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(schedule_table, "TABLE", tmp_path / "table.json")
    monkeypatch.setattr(schedule_table, "write_result", lambda *_: None)
    schedule_table.write_table(load_runs("schedule", schedule_table.Cell))
    assert (tmp_path / "table.json").read_text() == TABLE.read_text()

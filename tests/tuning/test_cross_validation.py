"""Runs with few rows: cross-validation scores them, and all rows are trained on."""

import json

import pytest
import torch

from peftlab.data import load_rows
from peftlab.data.splitting import stratified_folds, stratified_sample
from peftlab.errors import ErrorCollector, RecipeError, TuningInterrupted
from peftlab.recipe import DataSection
from peftlab.store import Store
from peftlab.tuning import Progress, tune
from peftlab.tuning.cross_validation import cross_validate, fold_run, fold_steps
from tests.runs import prepared_run
from tests.tuning.test_schedule import InfoRecorder
from tests.tuning.test_tune import ProgressRecorder, equal, weights

FEW = {"data.validation": "auto", "data.test": None}


# --- folds


def test_folds_have_equal_shares_of_each_label():
    labels = [["a"]] * 8 + [["b"]] * 5 + [["c"]] * 3
    folds = stratified_folds(labels, 4, seed=1)
    assert sorted(row for fold in folds for row in fold) == list(range(16))
    for label, least in (("a", 2), ("b", 1), ("c", 0)):
        counts = [sum(labels[row] == [label] for row in fold) for fold in folds]
        assert max(counts) - min(counts) <= 1
        assert min(counts) >= least


def test_rows_with_several_labels_are_dealt_by_the_rarest():
    labels = [["x", "rare"] if i % 5 == 0 else ["x"] for i in range(20)]
    assert all(sum("rare" in labels[row] for row in fold) == 1 for fold in stratified_folds(labels, 4, seed=3))


def test_sample_keeps_shares():
    labels = [["a"]] * 80 + [[]] * 20
    sample = stratified_sample(labels, 50, seed=0)
    assert sample == sorted(set(sample))
    assert abs(sum(labels[row] == ["a"] for row in sample) - 40) <= 1
    assert stratified_sample(labels, 500, seed=0) == list(range(100))


# --- validation: auto


@pytest.mark.parametrize(
    ("num_rows", "validation", "cross_validates", "held_out"),
    [
        (299, "auto", True, None),
        (300, "auto", True, 30),
        (40, "auto", False, 4),
        (40, 0.1, True, 4),
        (400, None, True, None),
    ],
)
def test_auto_holds_out_a_tenth_unless_rows_are_few(write, num_rows, validation, cross_validates, held_out):
    file = write("rows.jsonl", "".join(json.dumps({"text": str(i)}) + "\n" for i in range(num_rows)))
    section = DataSection(train=str(file), validation=validation)
    with ErrorCollector() as errors:
        splits = load_rows(section, errors, cross_validates=cross_validates).splits
    assert len(splits["validation"].rows) == held_out if held_out else "validation" not in splits
    assert len(splits["train"].rows) == num_rows - (held_out or 0)


# --- runs


def test_few_rows_are_cross_validated_and_all_trained_on(write_recipe, tmp_path):
    progress = InfoRecorder()
    result = tune(write_recipe(), store=tmp_path / "store", overrides=FEW, progress=progress)
    manifest = result.adapter.manifest
    assert manifest.validation == "4-fold cross-validation"
    assert (manifest.main_split, list(result.scores)) == ("cross-validation", ["cross-validation"])
    assert result.scores["cross-validation"].by_label["LOC"]["support"] == 10  # each of the entities once
    assert result.ledgers["train"].used == 12
    assert result.baselines.split == "cross-validation"
    assert result.baselines.scored_rows == 12
    assert any(
        "12 training rows are too few to hold out a part of them: first 4-fold" in info for info in progress.infos
    )
    assert sum(info.startswith("Fold ") for info in progress.infos) == 4
    assert progress.steps == list(range(1, 7))  # those of the final model: 2 epochs of 3
    card = (result.adapter.folder / "README.md").read_text()
    assert "Scores are those of 4-fold cross-validation; the adapter was trained on all training rows." in card


def test_cross_validation_does_not_change_the_adapter(write_recipe, tmp_path):
    recipe = write_recipe()
    with_folds = tune(recipe, store=tmp_path / "with", overrides=FEW)
    without = tune(recipe, store=tmp_path / "without", overrides={**FEW, "data.validation": None})
    assert equal(weights(with_folds.adapter), weights(without.adapter))
    assert (without.scores, without.baselines, without.adapter.manifest.validation) == ({}, None, "none")
    assert "Not scored." in (without.adapter.folder / "README.md").read_text()


@pytest.mark.parametrize("method", ["lora", "adalora", "bottleneck", "prefix", "full"])
def test_held_out_rows_are_predicted_by_models_of_the_other_folds(write_recipe, tmp_path, method):
    overrides = {**FEW, "method": {"type": method}, "training.num_train_epochs": 4}
    run = prepared_run(write_recipe(), overrides)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    found = cross_validate(run, tmp_path, Progress())
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())
    assert [len(outputs) for outputs in found.outputs] == [1] * 12
    held_out = run.dataset.folds[2]
    alone = prepared_run(write_recipe(), overrides)
    outputs = outputs_after_training(fold_run(alone, held_out), tmp_path, [found.features[row] for row in held_out])
    for row, expected in zip(held_out, outputs, strict=True):
        assert torch.allclose(found.outputs[row][0], expected, atol=1e-4)


def outputs_after_training(run, folder, features):
    from peftlab.tuning.preference.reference import run_forward
    from peftlab.tuning.training_loop import run_trainer

    run_trainer(run, folder, progress=Progress())
    return run_forward(run)([one for windows in features for one in windows])


def test_folds_of_long_rows_have_fewer_steps(write_recipe, monkeypatch):
    run = prepared_run(write_recipe(), {**FEW, "training.num_train_epochs": 200})
    assert fold_steps(run) == 600
    tokens = sum(map(len, run.train_features))
    monkeypatch.setattr("peftlab.tuning.cross_validation.MAX_TOKENS", 4 * 150 * tokens / 3)
    assert fold_steps(run) == 150
    assert fold_run(run, run.dataset.folds[0]).recipe.training.max_steps == 150
    monkeypatch.setattr("peftlab.tuning.cross_validation.MAX_TOKENS", 1)
    assert fold_steps(run) == 100


def test_resume_does_not_train_the_folds_again(write_recipe, tmp_path):
    recipe = write_recipe()
    straight = tune(recipe, store=tmp_path / "straight", overrides=FEW)
    with pytest.raises(TuningInterrupted, match="--resume"):
        tune(recipe, store=tmp_path / "store", overrides=FEW, progress=ProgressRecorder(interrupt_at=4))
    progress = InfoRecorder()
    resumed = tune(recipe, store=tmp_path / "store", overrides=FEW, resume=True, progress=progress)
    assert not any(info.startswith("Fold ") for info in progress.infos)
    assert progress.steps == [5, 6]
    assert equal(weights(straight.adapter), weights(resumed.adapter))
    assert resumed.scores == straight.scores


def test_interrupt_in_a_fold(write_recipe, tmp_path):
    class InterruptInFold(InfoRecorder):
        def info(self, message):
            super().info(message)
            if message.startswith("Fold 1"):
                raise KeyboardInterrupt

    recipe = write_recipe()
    with pytest.raises(TuningInterrupted, match="nothing was published"):
        tune(recipe, store=tmp_path / "store", overrides=FEW, progress=InterruptInFold())
    progress = InfoRecorder()
    tune(recipe, store=tmp_path / "store", overrides=FEW, resume=True, progress=progress)
    assert sum(info.startswith("Fold ") for info in progress.infos) == 4


def test_resume_of_another_recipe_during_cross_validation_is_refused(write_recipe, tmp_path):
    recipe = write_recipe()
    with pytest.raises(TuningInterrupted):
        tune(recipe, store=tmp_path / "store", overrides=FEW, progress=ProgressRecorder(interrupt_at=1))
    with pytest.raises(RecipeError, match="cannot resume: the recipe is not that of the interrupted run"):
        tune(recipe, store=tmp_path / "store", overrides={**FEW, "training.seed": 1}, resume=True)
    assert Store(tmp_path / "store").names() == []


def test_single_row_is_trained_on_without_scores(write_recipe, tmp_path):
    recipe = write_recipe()
    (tmp_path / "train.txt").write_text("[Ada](PER) came .\n")
    result = tune(recipe, store=tmp_path / "store", overrides=FEW)
    assert (result.scores, result.adapter.manifest.validation) == ({}, "none")

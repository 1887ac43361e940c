"""Runs that learn nothing: diverged runs stop, keep their best earlier epoch, and warn."""

import pytest
import torch

import peftlab
from peftlab.errors import TuningDiverged
from peftlab.recipe import read_recipe
from peftlab.store import Store
from peftlab.tasks import Confusion, Scores
from peftlab.tasks.heads import ClassificationHead
from peftlab.tasks.text_classification import TextClassificationTask
from peftlab.tasks.token_classification import TokenClassificationTask
from peftlab.tuning import trainer
from peftlab.tuning.divergence import warn_if_collapsed
from tests.runs import Losses
from tests.task_stores import one_line, recipe_for, run

AWAY = 1e30  # after one step, matrix products are infinite
LOWER = r"Lower training.learning_rate: it is 1e\+30; the default for this method is 0.001."


@pytest.fixture
def recipe(tiny_base, tmp_path):
    def write(kind="classes", **training):
        return recipe_for(tmp_path / kind, tiny_base, kind, training={"num_train_epochs": 4, **training})

    return write


@pytest.fixture
def nan_loss_after(monkeypatch):
    """A function that makes the training loss NaN after some batches; without `weights`, gradients stay finite."""

    def patch(num_batches, *, weights=True):
        loss, calls = ClassificationHead.loss, []

        def failing_loss(head, logits, labels):
            if not torch.is_grad_enabled():
                return loss(head, logits, labels)
            calls.append(1)
            value = loss(head, logits, labels)
            nan = value * float("nan")
            probed = 1  # before training, `probe_run` computes one loss
            return value if len(calls) <= num_batches + probed else nan if weights else value + nan.detach()

        monkeypatch.setattr(ClassificationHead, "loss", failing_loss)
        monkeypatch.setattr("peftlab.tuning.baselines.measure.fit_linear_probe", lambda *_: None)  # it needs the loss

    return patch


def test_nan_weights_raise_tuning_error_without_publish(recipe, tmp_path):
    progress = Losses()
    with pytest.raises(TuningDiverged, match=rf"step \d of 12 the weights were NaN or infinite; nothing .*{LOWER}"):
        peftlab.tune(recipe(learning_rate=AWAY), store=tmp_path / "store", device="cpu", progress=progress)
    assert not [loss for loss in progress.losses if loss == 0]
    assert Store(tmp_path / "store").names() == []


def test_nan_weights_exit_code(recipe, tmp_path):
    result = run("tune", recipe(learning_rate=AWAY), "--store", tmp_path / "store", "--device", "cpu")
    assert result.exit_code == 7
    assert "error: training diverged: at step" in one_line(result.output)


def test_publish_best_epoch_before_divergence(recipe, tmp_path, nan_loss_after):
    nan_loss_after(7)  # three batches per epoch
    progress = Losses()
    done = peftlab.tune(recipe(), store=tmp_path / "store", device="cpu", progress=progress)
    (warning,) = [message for message in progress.warnings if "diverged" in message]
    assert "at step 8 of 12 the weights were NaN or infinite; the best epoch before is kept." in warning
    assert not progress.stopped_early
    assert done.scores["test"].values["accuracy"] > 0
    assert peftlab.load("classes", store=tmp_path / "store", device="cpu").predict("it rained .")


def test_nan_weights_after_last_log_skip_evaluation(recipe, tmp_path, nan_loss_after, monkeypatch):
    monkeypatch.setattr(trainer, "LOGS_PER_EPOCH", 1)
    nan_loss_after(2)
    monkeypatch.setattr(Losses, "on_epoch_end", lambda *_, **__: pytest.fail("was scored"), raising=False)
    options = {"overrides": {"training.per_device_train_batch_size": 5, "training.num_train_epochs": 1}}
    with pytest.raises(TuningDiverged, match="at step 3 of 3 the weights were NaN or infinite"):
        peftlab.tune(recipe(), store=tmp_path / "store", device="cpu", progress=Losses(), **options)


def test_nan_loss_with_finite_weights(recipe, tmp_path, nan_loss_after):
    """As in fp16, where the loss may overflow and the step is skipped."""
    nan_loss_after(7, weights=False)
    progress = Losses()
    peftlab.tune(recipe(), store=tmp_path / "store", device="cpu", progress=progress)
    assert [loss == loss for loss in progress.losses] == [True] * 7 + [False] * 5
    assert not [message for message in progress.warnings if "diverged" in message]


CLASSES = TextClassificationTask(labels=["bad", "good"])
TAGS = TokenClassificationTask(labels=["PER"])


@pytest.mark.parametrize(
    ("task", "scores", "message"),
    [
        (TAGS, Scores({"f1": 0.0}), "validation f1 is 0: nothing was learned."),
        (TAGS, Scores({"f1": 0.1}), ""),
        (CLASSES, [[0, 2], [0, 3]], "the prediction for every validation row is 'good': nothing was learned."),
        (CLASSES, [[1, 1], [0, 3]], ""),
        (CLASSES, [[0, 0], [0, 3]], ""),  # only one gold label
    ],
)
def test_constant_predictions_warning(recipe, task, scores, message):
    if isinstance(scores, list):
        scores = Scores({"accuracy": 0.6}, confusion=Confusion(["bad", "good"], scores))
    progress = Losses()
    warn_if_collapsed(read_recipe(recipe(learning_rate=5e-3)), task, "validation", scores, progress)
    hint = (
        "You can raise training.num_train_epochs (it is 4); change training.learning_rate (it is 0.005; the default "
        "for this method is 0.001); set training.early_stopping_patience: null if the run stopped early."
    )
    assert progress.warnings == ([f"{message} {hint}"] if message else [])


def test_collapse_warning_omits_what_the_recipe_has(recipe):
    file = recipe(early_stopping_patience=None, learning_rate=1e-3)
    progress = Losses()
    for class_weights in ("balanced", None):
        changed = read_recipe(file, {"task.class_weights": class_weights})
        warn_if_collapsed(changed, TAGS, "validation", Scores({"f1": 0.0}), progress)
    rate = "change training.learning_rate (it is 0.001, the default for this method)"
    balance = "set task.class_weights: balanced if some labels are rare"
    assert progress.warnings[0].endswith(f"You can raise training.num_train_epochs (it is 4); {rate}.")
    assert progress.warnings[1].endswith(f"{rate}; {balance}.")


def test_tune_collapse_warning(recipe, tmp_path):
    progress = Losses()
    file = recipe("entities", learning_rate=1e-9, num_train_epochs=1, head_init="random")
    peftlab.tune(file, store=tmp_path / "store", device="cpu", progress=progress)
    assert "validation f1 is 0: nothing was learned. You can raise" in " ".join(progress.warnings)

"""Runs that learn nothing: what is lost is stopped and told, and nothing that was good before is lost with it."""

import pytest
import torch

import peftlab
from peftlab.errors import TuningDiverged
from peftlab.recipe import read_recipe
from peftlab.store import Store
from peftlab.tasks import Confusion, Scores
from peftlab.tasks.text_classification import TextClassificationTask
from peftlab.tasks.token_classification import TokenClassificationTask
from peftlab.tuning import trainer
from peftlab.tuning.divergence import warn_of_collapse
from tests.runs import Losses
from tests.task_stores import one_line, recipe_for, run

AWAY = 1e30  # one step so far, and products are infinite
LOWER = r"Lower training.learning_rate: it is 1e\+30, and 0.001 where a recipe of this method names none."


@pytest.fixture
def recipe(tiny_base, tmp_path):
    def written(kind="classes", **training):
        return recipe_for(tmp_path / kind, tiny_base, kind, training={"num_train_epochs": 4, **training})

    return written


@pytest.fixture
def loses_its_numbers(monkeypatch):
    """From its so-many-th training batch on, a run's loss is no number."""

    def after(batches, *, weights=True):
        loss, done = TextClassificationTask.loss, []

        def counting(task, logits, labels):
            if not torch.is_grad_enabled():
                return loss(task, logits, labels)
            done.append(1)
            told = loss(task, logits, labels)
            lost = told * float("nan")
            return told if len(done) <= batches else lost if weights else told + lost.detach()

        monkeypatch.setattr(TextClassificationTask, "loss", counting)

    return after


def test_a_run_without_numbers_ends_at_once_in_words_and_publishes_nothing(recipe, tmp_path):
    heard = Losses()
    with pytest.raises(TuningDiverged, match=rf"step \d of 12 weights were no numbers any more; nothing .*{LOWER}"):
        peftlab.tune(recipe(learning_rate=AWAY), store=tmp_path / "store", device="cpu", progress=heard)
    assert not [loss for loss in heard.losses if loss == 0]
    assert Store(tmp_path / "store").names() == []


def test_the_command_says_so_too(recipe, tmp_path):
    result = run("tune", recipe(learning_rate=AWAY), "--store", tmp_path / "store", "--device", "cpu")
    assert result.exit_code == 7
    assert "error: training diverged: at step" in one_line(result.output)


def test_the_best_epoch_before_is_kept(recipe, tmp_path, loses_its_numbers):
    loses_its_numbers(7)  # three batches an epoch
    heard = Losses()
    done = peftlab.tune(recipe(), store=tmp_path / "store", device="cpu", progress=heard)
    (warning,) = [told for told in heard.warnings if "diverged" in told]
    assert "at step 8 of 12 weights were no numbers any more; the best epoch before is kept." in warning
    assert not heard.stopped_early
    assert done.scores["test"].values["accuracy"] > 0
    assert peftlab.load("classes", store=tmp_path / "store", device="cpu").predict("it rained .")


def test_what_is_lost_after_the_last_loss_told_is_not_scored(recipe, tmp_path, loses_its_numbers, monkeypatch):
    monkeypatch.setattr(trainer, "LOGS_PER_EPOCH", 1)
    loses_its_numbers(2)
    monkeypatch.setattr(Losses, "epoch_done", lambda *_, **__: pytest.fail("was scored"), raising=False)
    options = {"overrides": {"training.per_device_train_batch_size": 5, "training.num_train_epochs": 1}}
    with pytest.raises(TuningDiverged, match="at step 3 of 3 weights were no numbers any more"):
        peftlab.tune(recipe(), store=tmp_path / "store", device="cpu", progress=Losses(), **options)


def test_where_the_weights_are_well_the_run_goes_on(recipe, tmp_path, loses_its_numbers):
    """As in fp16, whose loss may overflow while the step is left out."""
    loses_its_numbers(7, weights=False)
    heard = Losses()
    peftlab.tune(recipe(), store=tmp_path / "store", device="cpu", progress=heard)
    assert [loss == loss for loss in heard.losses] == [True] * 7 + [False] * 5
    assert not [told for told in heard.warnings if "diverged" in told]


CLASSES = TextClassificationTask(labels=["bad", "good"])
TAGS = TokenClassificationTask(labels=["PER"])


@pytest.mark.parametrize(
    ("task", "scores", "told"),
    [
        (TAGS, Scores({"f1": 0.0}), "validation f1 is 0: nothing was learnt."),
        (TAGS, Scores({"f1": 0.1}), ""),
        (CLASSES, [[0, 2], [0, 3]], "every validation row is answered 'good': nothing was learnt."),
        (CLASSES, [[1, 1], [0, 3]], ""),
        (CLASSES, [[0, 0], [0, 3]], ""),  # all that there was
    ],
)
def test_answers_that_show_nothing_learnt_are_told(recipe, task, scores, told):
    if isinstance(scores, list):
        scores = Scores({"accuracy": 0.6}, confusion=Confusion(["bad", "good"], scores))
    heard = Losses()
    warn_of_collapse(read_recipe(recipe(learning_rate=5e-3)), task, scores, heard)
    way = "Train for longer, or at another training.learning_rate: it is 0.005, and 0.001 where a recipe of this method"
    assert heard.warnings == ([f"{told} {way} names none."] if told else [])


def test_a_run_tells_it(recipe, tmp_path):
    heard = Losses()
    told = recipe("entities", learning_rate=1e-9, num_train_epochs=1)
    peftlab.tune(told, store=tmp_path / "store", device="cpu", progress=heard)
    assert "validation f1 is 0: nothing was learnt. Train for longer" in " ".join(heard.warnings)

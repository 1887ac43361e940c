"""Few rows per class: loss, batches, label texts and the fitted head, against brute force and scikit-learn."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from peftlab.errors import ErrorCollector, RecipeError
from peftlab.recipe import read_recipe
from peftlab.tasks.heads import ClassificationHead
from peftlab.tuning import Progress, tune
from peftlab.tuning.baselines.linear_probe import DEFAULT_STRENGTH
from peftlab.tuning.baselines.states import FrozenStates
from peftlab.tuning.few_shot import trainer as few_shot_trainer
from peftlab.tuning.few_shot.batches import ClassBatches
from peftlab.tuning.few_shot.label_texts import best_copies, choose_label_texts, words_of
from peftlab.tuning.few_shot.loss import supervised_contrastive_loss
from peftlab.tuning.training_loop import run_trainer
from tests.conftest import recipe_in
from tests.runs import Losses, prepared_run
from tests.tuning.test_tune import equal, weights

PEOPLE, PLACES = ("Ada Lovelace", "Grace Hopper", "Alan Turing", "Nobody"), ("London", "Paris", "Rome", "the train")
ROWS = [{"text": f"{name} wrote a letter", "label": "met_people"} for name in PEOPLE]
ROWS += [{"text": f"it rained in {name} , and it was late", "label": "sawPlaces"} for name in PLACES]


class Infos(Progress):
    """Records information."""

    def __init__(self):
        self.infos = []

    def info(self, message):
        self.infos.append(message)


@pytest.fixture
def recipe(tmp_path, tiny_base):
    """Eight texts of two classes, and no schedule."""
    for split, rows in (("rows", ROWS), ("held-out", ROWS[1:7])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    data = {"train": "rows.jsonl", "validation": "held-out.jsonl", "test": None}
    training = {"num_train_epochs": None, "per_device_train_batch_size": 8, "learning_rate": 5e-3}
    return recipe_in(
        tmp_path,
        tiny_base,
        base={"pooling": "mean"},
        task={"type": "text-classification"},
        data=data,
        training=training,
    )


# --- loss


def brute_force_loss(states, labels, temperature):
    """The formula of Khosla et al. (their L_out), one pair at a time."""
    states = [[x / math.sqrt(sum(y * y for y in state)) for x in state] for state in states.tolist()]

    def exponential(i, j):
        return math.exp(sum(a * b for a, b in zip(states[i], states[j], strict=True)) / temperature)

    losses = []
    for i, label in enumerate(labels):
        others = [j for j in range(len(labels)) if j != i]
        positives = [j for j in others if labels[j] == label]
        if positives:
            total = sum(exponential(i, j) for j in others)
            losses.append(-sum(math.log(exponential(i, j) / total) for j in positives) / len(positives))
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 2, 2], [0, 1, 2, 3, 4, 5]])
def test_loss_is_that_of_each_pair(labels):
    states = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    found = supervised_contrastive_loss(states, torch.tensor(labels), 0.3)
    assert float(found) == pytest.approx(brute_force_loss(states, labels, 0.3), rel=1e-5)


def test_gradient_is_finite_and_pulls_classes_together():
    states = torch.randn(6, 5, generator=torch.Generator().manual_seed(2)).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    before = supervised_contrastive_loss(states, labels, 0.1)
    before.backward()
    assert states.grad.isfinite().all()
    assert supervised_contrastive_loss(states - 0.01 * states.grad, labels, 0.1) < before


# --- batches


@pytest.mark.parametrize(
    ("sizes", "batch_size", "expected"),
    [
        ((8, 8), 48, {0: 8, 1: 8}),  # all rows of few classes, each once
        ((8, 3), 8, {0: 4, 1: 3}),
        ((1, 4), 8, {0: 2, 1: 4}),  # a single row is repeated
    ],
)
def test_batches_have_rows_of_each_class(sizes, batch_size, expected):
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    for batch in ClassBatches(labels, batch_size, seed=0):
        assert {label: sum(labels[row] == label for row in batch) for label in set(labels)} == expected
        assert len(set(batch)) == sum(map(min, expected.values(), sizes))


def test_many_classes_are_drawn_in_turn_with_their_anchors():
    labels = [label for label in range(10) for _ in range(6)]
    batches = list(ClassBatches(labels, 8, seed=3, anchors=range(60, 70)))
    assert len(batches) == 8  # 60 rows in batches of 8
    for batch in batches:
        rows, anchors = [row for row in batch if row < 60], [row - 60 for row in batch if row >= 60]
        assert len(rows) == 8
        assert sorted(anchors) == sorted({labels[row] for row in rows})
    drawn = [labels[row] for batch in batches for row in batch if row < 60]
    assert all(drawn.count(label) in (6, 8) for label in range(10))  # 32 draws of 10 classes, two rows each


def test_batches_depend_on_seed_epoch_and_rank_alone():
    labels = [0, 0, 0, 1, 1, 1, 2, 2, 2]

    def rows(seed=1, epoch=0, rank=0):
        batches = ClassBatches(labels, 4, seed, rank=rank, world_size=2)
        batches.set_epoch(epoch)
        assert len(list(batches)) == len(batches)
        return list(batches)

    assert rows() == rows()
    assert all(rows() != other for other in (rows(seed=2), rows(epoch=1), rows(rank=1)))


# --- label texts


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("card_arrival", "card arrival"),
        ("PartOf", "part of"),
        ("Refund_not_showing-up?", "refund not showing up"),
        ("größe", "größe"),
        ("0", ""),
        ("B-1", ""),
    ],
)
def test_words_of_a_label(label, text):
    assert words_of(label) == text


@pytest.mark.parametrize("labels", [["0", "1"], ["class 0", "class 1"], ["a", "letter"]])
def test_labels_without_different_words_have_no_texts(recipe, labels):
    file = recipe.parent / "rows.jsonl"
    file.write_text("".join(json.dumps({**row, "label": labels[i % 2]}) + "\n" for i, row in enumerate(ROWS)))
    run = prepared_run(recipe, {"data.validation": None})
    assert choose_label_texts(run).features == ()


def test_label_texts_count_only_if_they_help():
    random = torch.Generator().manual_seed(0)
    targets = torch.arange(16) % 2
    direction = torch.nn.functional.one_hot(targets, 2).repeat_interleave(20, 1).float()
    rows = FrozenStates(0.6 * direction + torch.randn(16, 40, generator=random), targets, torch.arange(16))
    means = torch.eye(2).repeat_interleave(20, 1)
    head, last = ClassificationHead(["a", "b"]), torch.tensor([-1, -1])
    assert best_copies(rows, FrozenStates(means, torch.arange(2), last), head, seed=0) > 0
    assert best_copies(rows, FrozenStates(5 * means.flip(0), torch.arange(2), last), head, seed=0) == 0


# --- whole runs


def test_head_is_logistic_regression_on_tuned_states(recipe, tmp_path):
    run = prepared_run(recipe)
    texts = [*(row["text"] for row in ROWS), *["met people", "saw places"] * 8]
    labels = np.array([*([0] * 4 + [1] * 4), *[0, 1] * 8])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peftlab.tuning.few_shot.label_texts.best_copies", lambda *_: 8)
        run_trainer(run, tmp_path, progress=Losses())
    tokenizer, model = run.base.inputs.tokenizer, run.model.get_base_model().eval()
    assert any(name.endswith("lora_B.default.weight") and tensor.any() for name, tensor in model.named_parameters())
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model.bert(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        states = (states * mask).sum(1) / mask.sum(1)
        found = model(**batch).logits.softmax(-1).numpy()
    states = states - states.mean(0)
    states = (states / states.square().mean().sqrt()).numpy()
    # of two classes scikit-learn fits one vector, whose penalty is twice that of two opposite halves
    expected = LogisticRegression(C=2 * DEFAULT_STRENGTH, tol=1e-8).fit(states, labels)
    assert np.allclose(found, expected.predict_proba(states), atol=2e-3)


def test_few_rows_are_trained_contrastively_by_default(recipe, tmp_path):
    progress = Infos()
    first, second = (tune(recipe, store=tmp_path / name, progress=progress) for name in ("first", "second"))
    assert (
        sum("Few rows per class (median 4): contrastive training for 16 epochs" in info for info in progress.infos) == 2
    )
    assert equal(weights(first.adapter), weights(second.adapter))
    training = read_recipe(first.adapter.folder / "recipe.yaml").training
    assert (training.few_shot, training.num_train_epochs, training.per_device_train_batch_size) == (
        "contrastive",
        16,
        8,
    )
    assert first.scores["validation"].values["accuracy"] == 1.0
    usual = tune(recipe, store=tmp_path / "usual", overrides={"training.few_shot": "off"})
    assert not equal(weights(first.adapter), weights(usual.adapter))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, "contrastive"),
        ({"training.num_train_epochs": 3}, "off"),
        ({"training.few_shot": "contrastive", "training.num_train_epochs": 3}, "contrastive"),
        ({"method": {"type": "head"}}, "off"),
        ({"training.head_init": "random"}, "off"),
    ],
)
def test_rule_of_auto(recipe, overrides, expected):
    run = prepared_run(recipe, overrides)
    assert run.recipe.training.few_shot == expected


def test_more_rows_per_class_are_trained_as_usual(recipe, monkeypatch):
    monkeypatch.setattr("peftlab.tuning.few_shot.choice.MAX_ROWS_PER_CLASS", 3)
    assert prepared_run(recipe).recipe.training.few_shot == "off"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"method": {"type": "head"}}, "'head' trains only the head"),
        ({"task.multi_label": True}, "multi_label allows several"),
        ({"task": {"type": "regression"}}, "regression has none"),
        ({"training.distributed": "fsdp"}, "the full base in each process"),
        ({"training.train_sampling_strategy": "random"}, "by class, not at random"),
    ],
)
def test_recipes_that_cannot_train_contrastively_are_refused(recipe, overrides, message):
    with pytest.raises(RecipeError, match=message), ErrorCollector() as errors:
        read_recipe(recipe, {"training.few_shot": "contrastive", **overrides}, errors)


@pytest.mark.parametrize("method", ["prefix", "bitfit", "bottleneck"])
def test_methods_that_train_inside_the_base(recipe, tmp_path, method):
    overrides = {"method": {"type": method}, "training.learning_rate": None}
    result = tune(recipe, store=tmp_path / "store", overrides=overrides)
    assert result.adapter.manifest.reload_difference < 1e-4


def test_parts_of_a_batch_change_nothing(recipe, monkeypatch):
    """Rows in one forward pass, or in several by length, give the same loss."""
    losses = []
    for size in (4, 16):
        monkeypatch.setattr(few_shot_trainer, "ROWS_AT_ONCE", size)
        run = prepared_run(recipe, {"training.bf16": False})
        trainer = few_shot_trainer.ContrastiveTrainer(run, lambda: None, recipe.parent)
        run.model.eval()
        with torch.no_grad():
            losses.append(float(trainer.mean_loss(run.model, trainer.collator()(trainer.rows()))[0]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

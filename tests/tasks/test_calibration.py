"""Calibration: the error, the temperature, and probabilities that are divided by it."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import optimize

import peftlab
from peftlab.store import Manifest, Store, TaskInfo
from peftlab.tasks import Calibration, Scores
from peftlab.tasks.inputs.entity_markers import MarkedText, Span
from peftlab.tasks.inputs.features import IGNORED, Feature
from peftlab.tasks.metrics.calibration import (
    PRIOR_WIDTH,
    debiased_ece,
    fit_class_temperature,
    fit_label_temperature,
    measure_calibration,
)
from peftlab.tasks.relation_extraction import RelationExtractionTask
from peftlab.tasks.text_classification import LabelledText, TextClassificationTask
from peftlab.tasks.token_classification import TaggedText, TokenClassificationTask
from tests.task_stores import KINDS, recipe_for, task_store  # noqa: F401  # a fixture

# --- the error


def test_ece_is_weighted_gap_of_equal_bins():
    calibration = measure_calibration([0.9] * 20 + [0.6] * 20, [True] * 10 + [False] * 10 + [True] * 15 + [False] * 5)
    assert calibration.counts == [20, 20]
    assert calibration.confidences == pytest.approx([0.6, 0.9])
    assert calibration.accuracies == [0.75, 0.5]
    assert calibration.ece == pytest.approx((0.15 + 0.4) / 2)


@pytest.mark.parametrize(("rows", "bins"), [(1, 1), (39, 1), (40, 2), (299, 14), (1000, 15)])
def test_bins_have_at_least_20_rows(rows, bins):
    rng = np.random.default_rng(rows)
    confidences, correct = rng.random(rows), rng.random(rows) < 0.5
    calibration = measure_calibration(confidences.tolist(), correct.tolist())
    assert (sum(calibration.counts), len(calibration.counts)) == (rows, bins)
    assert max(calibration.counts) - min(calibration.counts) <= 1
    edges = np.sort(confidences)[np.cumsum(calibration.counts) - 1]
    inside = np.searchsorted(edges, confidences)
    gaps = [abs(correct[inside == b].mean() - confidences[inside == b].mean()) for b in range(bins)]
    assert calibration.ece == pytest.approx(np.average(gaps, weights=calibration.counts))


def test_debiased_ece_matches_resampling():
    """Kumar et al.'s `normal_debiased_ce` draws the accuracies of the bins again; here their mean is exact."""
    rng = np.random.default_rng(0)
    counts, confidences, accuracies = [30, 50, 20], [0.55, 0.7, 0.99], [0.6, 0.5, 1.0]
    plain = np.average(np.abs(np.subtract(accuracies, confidences)), weights=counts)
    deviations = np.sqrt(np.multiply(accuracies, np.subtract(1, accuracies)) / counts)
    drawn = rng.normal(accuracies, deviations, (400_000, 3))
    resampled = np.average(np.abs(drawn - confidences), weights=counts, axis=1).mean()
    assert debiased_ece(counts, confidences, accuracies) == pytest.approx(2 * plain - resampled, abs=2e-4)


def test_debiased_ece_of_true_probabilities_is_smaller():
    rng = np.random.default_rng(1)
    measured = []
    for _ in range(50):
        probabilities = rng.uniform(0.5, 1, 400)
        measured.append(measure_calibration(probabilities.tolist(), (rng.random(400) < probabilities).tolist()))
    plain, debiased = (np.mean([getattr(one, name) for one in measured]) for name in ("ece", "ece_debiased"))
    assert plain > 0.05
    assert debiased < 0.65 * plain


def test_nothing_to_measure_without_predictions():
    assert measure_calibration([], []) is None


# --- the temperature


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_class_temperature_recovers_scaled_logits(temperature):
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(4000, 5)) * 2
    probabilities = torch.tensor(logits).softmax(-1).numpy()
    targets = [rng.choice(5, p=row) for row in probabilities]
    assert fit_class_temperature(logits * temperature, targets) == pytest.approx(temperature, rel=0.06)


@pytest.mark.parametrize("rows", [3, 60])
def test_class_temperature_minimizes_cross_entropy_with_prior(rows):
    rng = np.random.default_rng(rows)
    logits, targets = torch.tensor(rng.normal(size=(rows, 4)) * 4), torch.tensor(rng.integers(4, size=rows))

    def loss(log_temperature):
        scaled = logits / math.exp(log_temperature[0])
        nll = float(torch.nn.functional.cross_entropy(scaled, targets, reduction="sum"))
        return nll + log_temperature[0] ** 2 / (2 * PRIOR_WIDTH**2)

    expected = optimize.minimize(loss, [0.0], method="Nelder-Mead").x[0]
    assert math.log(fit_class_temperature(logits, targets)) == pytest.approx(expected, abs=1e-3)


def test_label_temperature_minimizes_binary_cross_entropy_with_prior():
    rng = np.random.default_rng(5)
    logits, targets = torch.tensor(rng.normal(size=(50, 3)) * 4), torch.tensor(rng.integers(2, size=(50, 3)) * 1.0)

    def loss(log_temperature):
        scaled = logits / math.exp(log_temperature[0])
        nll = float(torch.nn.functional.binary_cross_entropy_with_logits(scaled, targets, reduction="sum"))
        return nll + log_temperature[0] ** 2 / (2 * PRIOR_WIDTH**2)

    expected = optimize.minimize(loss, [0.0], method="Nelder-Mead").x[0]
    assert math.log(fit_label_temperature(logits, targets)) == pytest.approx(expected, abs=1e-3)


def test_few_right_rows_move_the_temperature_little():
    """Without a prior it would go to 0, and every probability to 1."""
    logits = np.tile([2.0, 0.0], (500, 1))
    few, many = (fit_class_temperature(logits[:rows], [0] * rows) for rows in (5, 500))
    assert 0.75 < few < 1
    assert many < few


# --- probabilities


def make_text(label):
    return LabelledText("x", "f:1", labels=(label,))


def test_class_probabilities_are_divided_by_temperature():
    task = TextClassificationTask(labels=["a", "b", "c"])
    logits = torch.tensor([1.0, 3.0, -2.0])
    before = task.decode(make_text("a"), [None], [logits])
    task.state["temperature"] = 2.5
    after = task.decode(make_text("a"), [None], [logits])
    assert list(before.probabilities.values()) == logits.log_softmax(-1).softmax(-1).tolist()
    assert list(after.probabilities.values()) == pytest.approx((logits / 2.5).softmax(-1).tolist())
    assert before.label == after.label == "b"


@pytest.mark.parametrize("windows", [1, 3])
def test_label_probabilities_are_divided_by_temperature(windows):
    task = TextClassificationTask(labels=["a", "b"], multi_label=True)
    outputs = [torch.tensor([1.0 + i, -3.0]) for i in range(windows)]
    mean = torch.stack(outputs).sigmoid().mean(0)
    assert list(task.decode(make_text("a"), outputs, outputs).probabilities.values()) == mean.tolist()
    task.state["temperature"] = 2.0
    expected = (mean.logit() / 2).sigmoid().tolist()
    assert list(task.decode(make_text("a"), outputs, outputs).probabilities.values()) == pytest.approx(expected)


def test_fitted_text_temperature_is_that_of_the_logits():
    rng = torch.Generator().manual_seed(3)
    logits, labels = torch.randn(40, 3, generator=rng) * 5, [make_text("abc"[i % 3]) for i in range(40)]
    task = TextClassificationTask(labels=["a", "b", "c"])
    task.metric.fit_temperature(labels, [[None]] * 40, [[row] for row in logits])
    assert task.state == {"temperature": fit_class_temperature(logits, [i % 3 for i in range(40)])}
    [again] = [TaskInfo.from_task(task).build()]
    prediction = again.decode(labels[0], [None], [logits[0]])
    expected = (logits[0] / task.state["temperature"]).softmax(-1).tolist()
    assert list(prediction.probabilities.values()) == pytest.approx(expected)


def test_relation_score_is_divided_by_temperature():
    task = RelationExtractionTask(labels=["r", "s"])
    example = MarkedText("a b", "f:1", head=Span(0, 1, None), tail=Span(2, 3, None), label="s")
    logits = torch.tensor([0.0, 2.0])
    assert task.decode(example, [None], [logits]).score == float(logits.softmax(-1)[1])
    task.metric.fit_temperature([example] * 9, [[None]] * 9, [[logits]] * 9)
    temperature = task.state["temperature"]
    assert temperature == fit_class_temperature(np.tile(logits, (9, 1)), [1] * 9)
    assert task.decode(example, [None], [logits]).score == pytest.approx(float((logits / temperature).softmax(-1)[1]))


def test_tags_stay_and_entity_scores_are_divided_by_temperature():
    task = TokenClassificationTask(labels=["P"])
    example = TaggedText("Ada came", "f:1", words=((0, 3), (4, 8)), spans=((0, 1, "P"),))
    feature = Feature({"input_ids": [1, 2, 3, 4]}, [IGNORED, 1, 0, IGNORED], ((1, 0), (2, 1)))
    rng = torch.Generator().manual_seed(4)
    logits = torch.randn(4, 3, generator=rng)
    logits[1, 1] += 4
    before = task.decode(example, [feature], [logits])
    task.metric.fit_temperature([example], [[feature]], [[logits]])
    temperature = task.state["temperature"]
    assert temperature == fit_class_temperature(logits[1:3], [1, 0])
    after = task.decode(example, [feature], [logits])
    assert before.tags == after.tags
    assert before.tags[0] == "B-P"
    assert after.entities[0].score == round(float((logits[1] / temperature).softmax(-1)[1]), 4)


def test_entity_calibration_counts_right_entities():
    task = TokenClassificationTask(labels=["P"])
    example = TaggedText("Ada came", "f:1", words=((0, 3), (4, 8)), spans=((0, 1, "P"),))
    feature = Feature({"input_ids": [1, 2]}, [1, 0], ((0, 0), (1, 1)))
    right = task.decode(example, [feature], [torch.tensor([[0.0, 5.0, 0.0], [5.0, 0.0, 0.0]])])
    wrong = task.decode(example, [feature], [torch.tensor([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0]])])
    calibration = task.score([example, example], [right, wrong]).calibration
    assert (calibration.counts, calibration.accuracies) == ([2], [0.5])
    assert calibration.confidences[0] == pytest.approx(right.entities[0].score)


# --- from a recipe to a prediction

CALIBRATED = ("entities", "classes", "topics", "relations")  # the adapter of `characters` finds no entity


@pytest.mark.parametrize("kind", KINDS)
def test_published_adapter_has_temperature_and_both_errors(task_store, kind):  # noqa: F811
    adapter = Store(task_store).resolve(kind)
    assert ("temperature" in adapter.task.state) == (kind in (*CALIBRATED, "characters"))
    card = (adapter.folder / "README.md").read_text(encoding="utf8")
    for split in ("validation", "test"):
        calibration = adapter.manifest.scores[split].calibration
        assert bool(calibration) == (kind in CALIBRATED)
    if calibration:
        assert calibration.ece_uncalibrated is not None
        assert (adapter.folder / "reliability.png").is_file()
        assert f"Probabilities, test: {calibration}." in card
        assert "](reliability.png)" in card
    else:
        assert "reliability" not in card


def test_bank_predicts_plain_logits_over_temperature(task_store):  # noqa: F811
    bank = peftlab.load("classes", store=task_store, device="cpu")
    prediction = bank.predict(["it rained ."])[0].prediction
    temperature = bank.task("classes").state["temperature"]
    inputs = bank.base.inputs_for(bank.task("classes"))
    [[feature]] = bank.task("classes").encode(
        [bank.task("classes").read_input(_row("it rained ."))], inputs, 64, training=False
    )
    with torch.inference_mode():
        logits = bank.model("classes")(**inputs.pad([feature])).logits[0]
    expected = dict(zip(bank.task("classes").labels, (logits / temperature).softmax(-1).tolist(), strict=True))
    assert prediction.probabilities == pytest.approx(expected, abs=1e-5)
    assert temperature != 1


def _row(text):
    from peftlab.data import Row

    return Row({"text": text}, "f:1")


def test_adapter_without_temperature_predicts_plain_probabilities(tmp_path, task_store):  # noqa: F811
    manifest = json.loads((Store(task_store).resolve("classes").folder / "peftlab.json").read_text(encoding="utf8"))
    del manifest["task"]["learned"]["temperature"]
    del manifest["scores"]["test"]["calibration"]
    old = Manifest.from_dict(manifest)
    assert old.scores["test"].calibration is None
    logits = torch.tensor([0.3, 1.7, -4.0])
    prediction = old.task.build().decode(make_text("good"), [None], [logits])
    assert list(prediction.probabilities.values()) == logits.log_softmax(-1).softmax(-1).tolist()


def test_scores_keep_calibration():
    calibration = Calibration(0.1, 0.05, None, [3], [0.5], [0.6])
    assert Scores.from_dict(Scores({"f1": 1.0}, calibration=calibration).as_dict()).calibration == calibration


@pytest.mark.usefixtures("with_plots")
def test_reliability_diagram_shows_points_and_diagonal(tmp_path):
    from matplotlib.image import imread

    from peftlab.tuning.report.reliability_diagram import draw_reliability

    draw_reliability(Calibration(0.1, 0.05, 0.2, [9, 3], [0.2, 0.9], [0.25, 0.7]), "title", tmp_path / "r.png")
    pixels = (255 * imread(tmp_path / "r.png")[..., :3]).round().astype(int).reshape(-1, 3)
    assert {(0x4C, 0x72, 0xB0), (0x80, 0x80, 0x80)} <= set(map(tuple, pixels.tolist()))

import random
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional

from peftlab.base import BaseFiles
from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.errors import ErrorCollector
from peftlab.store import TaskInfo
from peftlab.tasks.inputs.text import TextInputs, load_tokenizer
from peftlab.tasks.regression import NumberPrediction, RegressionTask, ScoredText


@pytest.fixture
def bert(tiny_base):
    return load_tokenizer(BaseFiles("x", tiny_base, "local folder"))


def read(fields):
    return RegressionTask().read(Row(fields, "f:1"))


def fit_labels(task, *numbers):
    errors = ErrorCollector()
    task.fit_labels({"train": [ScoredText("x", label=number) for number in numbers]}, errors)
    return [str(issue) for issue in errors.issues]


@pytest.mark.parametrize(
    ("fields", "pair", "number"),
    [
        ({"text": "a", "label": 3}, None, 3.0),
        ({"text": "a", "label": -2.5, "id": 1}, None, -2.5),
        ({"text": "a", "label": " 4.25 "}, None, 4.25),
        ({"text": "a", "label": "1e3"}, None, 1000.0),
        ({"text": "a", "text_pair": "b", "label": "0"}, "b", 0.0),
        ({"text": "a", "text_pair": None, "label": 0}, None, 0.0),
    ],
)
def test_row_formats_are_parsed(fields, pair, number):
    example = read(fields)
    assert (example.text, example.text_pair, example.label, example.where) == ("a", pair, number, "f:1")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "a", "score": 3}, "expected columns text and label; found text, score."),
        ({"label": 3}, "expected columns text and label; found label."),
        ({"text": ["a"], "label": 3}, "expected text to be a string, found ['a']"),
        ({"text": "", "label": 3}, "expected text to hold some text, found ''"),
        ({"text": "a", "text_pair": "\n", "label": 3}, "expected text_pair to hold some text, found '\\n'"),
        *(
            ({"text": "a", "label": value}, f"expected label to be a number, found {value!r}")
            for value in (None, "", "good", "3,5", True, [3], float("nan"), "inf")
        ),
        ({"text": "a", "label": 10**400}, "expected label to be a number, found 1000"),
    ],
)
def test_invalid_row_raises_row_error(fields, message):
    with pytest.raises(RowError) as caught:
        read(fields)
    assert str(caught.value).startswith(message)


def test_state_matches_training_statistics():
    for seed in range(50):
        rng = random.Random(seed)
        numbers = [rng.gauss(100, 30) for _ in range(rng.randrange(2, 40))]
        task = RegressionTask()
        assert fit_labels(task, *numbers) == []
        expected = {
            "mean": np.mean(numbers), "deviation": np.std(numbers), "least": min(numbers), "most": max(numbers)
        }  # fmt: skip
        assert task.state == pytest.approx(expected, abs=1e-9)
    again = TaskInfo.from_task(task).build()
    assert again.state == task.state
    assert again.head.labels == ["value"]
    assert f"logit × {task.state['deviation']:.6g} + {task.state['mean']:.6g}" in again.output_help()


@pytest.mark.parametrize("numbers", [[3.0], [0.1] * 7])
def test_constant_target_is_an_error(numbers, bert):
    task = RegressionTask()
    [issue] = fit_labels(task, *numbers)
    assert issue == f"data.train: every training row says {numbers[0]:g}; there is nothing to learn."
    [feature] = task.encode([ScoredText("ada", label=numbers[0])], TextInputs(bert), 16, training=True)[0]
    assert feature.labels == 0.0


def test_no_error_for_empty_training_data():
    assert fit_labels(RegressionTask()) == []


@pytest.mark.parametrize("loss", ["mse", "mae"])
def test_loss_matches_torch_on_normalized_targets(bert, loss):
    numbers = [1.0, 2.0, 4.0, 9.0]
    task = RegressionTask(loss=loss)
    fit_labels(task, *numbers)
    features = [task.encode([ScoredText("ada", label=n)], TextInputs(bert), 16, training=True)[0][0] for n in numbers]
    labels = task.head.collate(features, TextInputs(bert))["labels"]
    standard = torch.tensor((np.array(numbers) - np.mean(numbers)) / np.std(numbers), dtype=torch.float32)
    assert torch.allclose(labels.float(), standard)
    logits = torch.randn(4, 1, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss_function = {"mse": functional.mse_loss, "mae": functional.l1_loss}[loss]
    assert torch.allclose(task.head.loss(logits, labels), loss_function(logits[:, 0], standard))
    assert task.head.loss(logits, labels).dtype == torch.float32


def test_prediction_is_mean_of_windows_in_data_unit(bert):
    task = RegressionTask()
    fit_labels(task, 10.0, 30.0)
    long = task.read_input(Row({"text": "nobody came " * 60}, "f:1"))
    features = task.encode([long], TextInputs(bert), 16, training=False)[0]
    assert len(features) > 5
    outputs = [torch.tensor([float(n)]) for n in range(len(features))]
    predicted = task.decode(long, features, outputs)
    assert predicted.value == pytest.approx(20 + 10 * (len(features) - 1) / 2)
    assert [feature.labels for feature in features] == [None] * len(features)


def test_prediction_as_dict():
    assert NumberPrediction("x", None, 1 / 3).as_dict() == {"text": "x", "value": 0.3333}
    assert NumberPrediction("x", "y", 2.0).as_dict() == {"text": "x", "text_pair": "y", "value": 2.0}


def score(gold, predicted):
    examples = [ScoredText("x", label=number) for number in gold]
    return RegressionTask().score(examples, [NumberPrediction("x", None, number) for number in predicted]).values


def test_scores_match_numpy():
    for seed in range(200):
        rng = random.Random(seed)
        unit, count = 10 ** rng.randrange(-3, 4), rng.randrange(3, 60)
        gold = [rng.choice([1, 2, 3.5, 4, 5]) * unit for _ in range(count)]
        gold[:2] = [unit, 5 * unit]
        predicted = [rng.random() * number + rng.choice([0, unit]) * rng.random() for number in gold]
        errors = np.array(gold) - np.array(predicted)
        expected = {
            "pearson": stats.pearsonr(gold, predicted).statistic,
            "spearman": stats.spearmanr(gold, predicted).statistic,
            "rmse": np.sqrt(np.mean(errors**2)),
            "mae": np.mean(np.abs(errors)),
        }
        assert score(gold, predicted) == pytest.approx(expected, abs=1e-6, rel=1e-9)


@pytest.mark.parametrize(("gold", "predicted"), [([1, 2, 3], [2, 2, 2]), ([2, 2, 2], [1, 2, 3]), ([1], [2]), ([], [])])
def test_correlation_is_zero_for_constant_values(gold, predicted):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = score(gold, predicted)
    assert (values["pearson"], values["spearman"]) == (0.0, 0.0)
    assert values["mae"] == pytest.approx(np.mean(np.abs(np.array(gold) - np.array(predicted))) if gold else 0.0)

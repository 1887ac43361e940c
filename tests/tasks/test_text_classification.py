import random
import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from peftlab.base import BaseFiles
from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.errors import ErrorCollector
from peftlab.store import TaskInfo
from peftlab.tasks.inputs.text import TextInputs, load_tokenizer
from peftlab.tasks.labels.label_set import _by_value
from peftlab.tasks.text_classification import ClassPrediction, LabelledText, TextClassificationTask


@pytest.fixture
def bert(tiny_base):
    return load_tokenizer(BaseFiles("x", tiny_base, "local folder"))


def read(fields, **options):
    return TextClassificationTask(**options).read(Row(fields, "f:1"))


def fit_labels(task, **splits):
    errors = ErrorCollector()
    task.fit_labels(splits, errors)
    return [str(issue) for issue in errors.issues]


def make_example(*labels):
    return LabelledText("x", "f:1", labels=labels)


def make_prediction(*labels):
    return ClassPrediction("x", None, labels, {})


# --- reading rows


@pytest.mark.parametrize(
    ("fields", "pair", "labels"),
    [
        ({"text": "a film", "label": "good"}, None, ("good",)),
        ({"text": "a film", "label": " good ", "id": 3}, None, ("good",)),
        ({"text": "a film", "text_pair": "a book", "label": "good"}, "a book", ("good",)),
        ({"text": "a film", "text_pair": None, "label": "good"}, None, ("good",)),
        ({"text": "a film", "label": 1}, None, ("good",)),
        ({"text": "a film", "label": "1"}, None, ("good",)),
        ({"text": "a film", "label": 2}, None, ("2",)),
        ({"text": "a film", "label": -1}, None, ("-1",)),
    ],
)
def test_row_formats_are_parsed(fields, pair, labels):
    example = read(fields, labels=["bad", "good"])
    assert (example.text, example.text_pair, example.labels, example.where) == ("a film", pair, labels, "f:1")


def test_unlisted_number_is_label_name():
    assert read({"text": "a", "label": 1}).labels == ("1",)
    assert read({"text": "a", "label": 1}, labels=["1", "0"]).labels == ("1",)


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        (["joy", "fear"], ("joy", "fear")),
        ([], ()),
        ("", ()),
        ("joy", ("joy",)),
        (" joy , fear,", ("joy", "fear")),
        ('["joy", "fear, or dread"]', ("joy", "fear, or dread")),
        ("[]", ()),
        ("0, 1", ("joy", "fear")),
        ([1, "joy", 1], ("fear", "joy")),
    ],
)
def test_multiple_labels_are_parsed(cell, labels):
    assert read({"text": "a", "labels": cell}, labels=["joy", "fear"], multi_label=True).labels == labels


SEVERAL = {"multi_label": True}


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        (
            {"text": "a", "sentiment": "good"},
            {},
            "expected columns text and label; found text, sentiment. Map yours under data.columns, our name first",
        ),
        ({"sentence": "a", "label": "good"}, {}, "expected columns text and label; found sentence, label."),
        ({"text": "a", "label": "good"}, SEVERAL, "expected columns text and labels; found text, label. Is 'label'"),
        ({"text": 3, "label": "good"}, {}, "expected text to be a string, found 3"),
        ({"text": " ", "label": "good"}, {}, "expected text to hold some text, found ' '"),
        ({"text": "a", "text_pair": "", "label": "good"}, {}, "expected text_pair to hold some text, found ''"),
        ({"text": "a", "text_pair": 3, "label": "good"}, {}, "expected text_pair to be a string, found 3"),
        ({"text": "a", "label": None}, {}, "expected label to be a name or a whole number, found None"),
        ({"text": "a", "label": ""}, {}, "expected label to be a name or a whole number, found ''"),
        ({"text": "a", "label": True}, {}, "expected label to be a name or a whole number, found True"),
        ({"text": "a", "label": 0.5}, {}, "expected label to be a name or a whole number, found 0.5"),
        ({"text": "a", "label": ["good"]}, {}, "expected label to be a name or a whole number, found ['good']"),
        ({"text": "a", "labels": None}, SEVERAL, "expected labels to be a list of names, found None"),
        ({"text": "a", "labels": 3}, SEVERAL, "expected labels to be a list of names, found 3"),
        ({"text": "a", "labels": '["a"'}, SEVERAL, "expected labels as JSON; Expecting ',' delimiter at column 5"),
        ({"text": "a", "labels": ["a", 1.5]}, SEVERAL, "expected each of labels to be a name or a whole number"),
    ],
)  # fmt: skip
def test_invalid_row_raises_row_error(fields, options, message):
    with pytest.raises(RowError) as caught:
        read(fields, **options)
    assert str(caught.value).startswith(message)


def test_input_requires_text_not_label():
    task = TextClassificationTask()
    asked = task.read_input(Row({"text": "", "text_pair": "b"}, "f:1"))
    assert (asked.text, asked.text_pair) == ("", "b")
    with pytest.raises(RowError, match=r"expected column text; found txt\. Is 'txt' the text\?"):
        task.read_input(Row({"txt": "a"}, "f:1"))
    with pytest.raises(RowError, match="expected text to be a string, found None"):
        task.read_input(Row({"text": None}, "f:1"))


# --- labels


def test_labels_are_sorted_by_value_then_name():
    task = TextClassificationTask()
    assert fit_labels(task, train=[make_example(name) for name in ("10", "b", "9", "a", "-1")]) == []
    assert task.labels == task.head.labels == ["-1", "9", "10", "a", "b"]


def test_label_order_is_deterministic():
    names = ["nan", "b", "2", "a", "inf", "1"]
    assert {tuple(sorted(random.Random(n).sample(names, 6), key=_by_value)) for n in range(50)} == {
        ("1", "2", "a", "b", "inf", "nan")
    }


def test_unknown_validation_label_is_an_error():
    seen, unseen = [make_example("good"), make_example("bad")], [make_example("godo")]
    assert fit_labels(TextClassificationTask(), train=seen, validation=unseen) == [
        "data.validation: label 'godo' occurs in validation (1×, first at f:1) but not in the training rows. "
        "Did you mean 'good'? Available labels: bad, good."
    ]


def test_unlisted_label_is_an_error():
    [issue] = fit_labels(TextClassificationTask(labels=["bad", "good"]), train=[make_example("7")])
    assert "label '7' occurs in train (1×, first at f:1) but not in task.labels" in issue


@pytest.mark.parametrize(
    ("options", "rows", "message"),
    [
        ({}, [make_example("good")] * 3, "the training rows hold 1 label(s): good; nothing to tell apart."),
        (SEVERAL, [make_example()] * 3, "the training rows hold 0 label(s): none; nothing to tell apart."),
    ],
)
def test_training_rows_require_two_labels(options, rows, message):
    assert fit_labels(TextClassificationTask(**options), train=rows) == [f"data.train: {message}"]


def test_task_info_build_returns_same_task():
    task = TextClassificationTask(labels=["b", "a"], multi_label=True, threshold=0.3, class_weights="balanced")
    again = TaskInfo.from_task(task).build()
    assert (again.labels, again.multi_label, again.threshold) == (["b", "a"], True, 0.3)
    assert again.options == task.options
    assert (again.metric.name, again.head.problem_type) == ("micro_f1", "multi_label_classification")


# --- weights and loss


def test_balanced_weights_match_sklearn():
    for seed in range(50):
        rng = random.Random(seed)
        names = [*"abcd", *rng.choices("abcd", weights=[8, 4, 2, 1], k=rng.randrange(60))]
        task = TextClassificationTask(class_weights="balanced")
        fit_labels(task, train=[make_example(name) for name in names])
        expected = compute_class_weight("balanced", classes=np.array(task.labels), y=np.array(names))
        assert task.weights == pytest.approx(expected.tolist(), abs=1e-12)


def test_multi_label_balanced_weights_are_negative_positive_ratios():
    task = TextClassificationTask(multi_label=True, class_weights="balanced", labels=["a", "b", "never"])
    fit_labels(task, train=[make_example("a"), make_example("a", "b"), make_example("a"), make_example()])
    assert task.weights == [1 / 3, 3.0, 4.0]


@pytest.mark.parametrize("use_weights", [False, True])
@pytest.mark.parametrize("multi_label", [False, True])
def test_loss_matches_torch_with_weights(use_weights, multi_label):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(40, 3, generator=generator)
    rows = [make_example(*names) for names in [["a"], ["b"], ["c"], ["a"]] * 10]
    task = TextClassificationTask(multi_label=multi_label, class_weights="balanced" if use_weights else None)
    fit_labels(task, train=rows)
    weights = torch.tensor([2 / 3, 4 / 3, 4 / 3]) if use_weights and not multi_label else torch.ones(3)
    if multi_label:
        target = (torch.rand(40, 3, generator=generator) < 0.5).float()
        positive = torch.tensor([1.0, 3.0, 3.0]) if use_weights else torch.ones(3)
        hit, miss = logits.sigmoid().log(), (1 - logits.sigmoid()).log()
        expected = -(positive * target * hit + (1 - target) * miss).mean()
    else:
        target = torch.randint(3, (40,), generator=generator)
        probabilities = logits.log_softmax(-1)[range(40), target]
        expected = -(weights[target] * probabilities).sum() / weights[target].sum()
        assert task.head.loss(logits, target) == functional.cross_entropy(logits, target, weight=weights)
    assert task.head.loss(logits, target) == pytest.approx(float(expected), abs=1e-6)


# --- encode and decode


def test_labels_are_encoded_as_ids_or_vectors(bert):
    for options, label in (({}, 1), (SEVERAL, [0.0, 1.0, 0.0])):
        task = TextClassificationTask(labels=["c", "a", "b"], **options)
        [feature] = task.encode([make_example("a")], TextInputs(bert), 16, training=True)[0]
        assert feature.labels == label
        batch = task.head.collate([feature, feature], TextInputs(bert))
        assert batch["labels"].tolist() == [label, label]


def token_ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("max_length", [8, 13, 30])
@pytest.mark.parametrize(("first", "second"), [(100, None), (100, 2), (2, 100), (40, 50), (9, 9), (1, 1)])
def test_windows_include_every_token_within_max_length(bert, first, second, max_length):
    words = ["letter", "train", "rain", "late", "nobody", "came", "wrote"]
    rng = random.Random(first)
    text = " ".join(rng.choices(words, k=first))
    pair = None if second is None else " ".join(rng.choices(words, k=second))
    task = TextClassificationTask(labels=["a", "b"])
    example = task.read_input(Row({"text": text, "text_pair": pair}, "f:1"))
    features = task.encode([example], TextInputs(bert), max_length, training=False)[0]
    assert all(len(feature) <= max_length for feature in features)
    bodies = [split_by_sep_token(feature.inputs["input_ids"], bert) for feature in features]
    for part, whole in enumerate([text] if pair is None else [text, pair]):
        wanted = token_ids(bert, whole)
        pieces = {tuple(body[part]) for body in bodies}
        covered = set()
        for piece in pieces:
            starts = [n for n in range(len(wanted)) if tuple(wanted[n : n + len(piece)]) == piece]
            assert starts
            covered |= {n for start in starts for n in range(start, start + len(piece))}
        assert covered == set(range(len(wanted)))
    if pair is not None:
        seen = {tuple(map(tuple, body)) for body in bodies}
        assert seen == {(a, b) for a, _ in seen for _, b in seen}


def split_by_sep_token(ids, tokenizer):
    assert ids[0] == tokenizer.cls_token_id
    assert ids[-1] == tokenizer.sep_token_id
    inner = ids[1:-1]
    if tokenizer.sep_token_id in inner:
        at = inner.index(tokenizer.sep_token_id)
        return [inner[:at], inner[at + 1 :]]
    return [inner]


def test_training_text_is_truncated(bert):
    task = TextClassificationTask(labels=["good", "bad"])
    long = LabelledText("letter train rain " * 20, labels=("bad",))
    [feature] = task.encode([long], TextInputs(bert), 10, training=True)[0]
    assert (len(feature), feature.truncated, feature.labels) == (10, True, 1)
    assert feature.inputs["input_ids"][1:-1] == token_ids(bert, long.text)[:8]
    [whole] = task.encode([make_example("bad")], TextInputs(bert), 10, training=True)[0]
    assert not whole.truncated


def test_prediction_is_mean_of_window_log_probs():
    task = TextClassificationTask(labels=["a", "b", "c"])
    rng = torch.Generator().manual_seed(2)
    for _ in range(200):
        windows = list(torch.randn(int(torch.randint(1, 5, (1,), generator=rng)), 3, generator=rng) * 3)
        prediction = task.decode(make_example("a"), [None] * len(windows), windows)
        product = np.prod([np.exp(w.numpy()) / np.exp(w.numpy()).sum() for w in windows], axis=0) ** (1 / len(windows))
        assert list(prediction.probabilities.values()) == pytest.approx((product / product.sum()).tolist(), abs=1e-5)
        assert prediction.labels == (task.labels[int(product.argmax())],) == (prediction.label,)


def test_labels_over_threshold_are_predicted():
    task = TextClassificationTask(labels=["a", "b", "c"], multi_label=True, threshold=0.3)
    windows = [torch.tensor([0.5, 0.2, 0.1]).logit(), torch.tensor([0.9, 0.5, 0.1]).logit()]
    prediction = task.decode(make_example(), [None] * 2, windows)
    assert list(prediction.probabilities.values()) == pytest.approx([0.7, 0.35, 0.1])
    assert prediction.labels == ("a", "b")
    assert "reaches 0.3" in task.output_help()


def test_prediction_as_dict_is_sorted_by_score():
    plain = ClassPrediction("x", "y", ("b",), {"a": 0.25, "b": 0.74999}).as_dict()
    assert plain == {"text": "x", "text_pair": "y", "labels": ["b"], "scores": {"b": 0.75, "a": 0.25}}
    assert list(plain["scores"]) == ["b", "a"]
    assert "text_pair" not in ClassPrediction("x", None, (), {}).as_dict()


# --- scores


def expected_by_label(gold, predicted, labels):
    report = metrics.classification_report(gold, predicted, labels=labels, output_dict=True, zero_division=0)
    names = {"precision": "precision", "recall": "recall", "f1": "f1-score", "support": "support"}
    return {label: {ours: report[str(label)][theirs] for ours, theirs in names.items()} for label in labels}


def test_scores_match_sklearn():
    for seed in range(150):
        rng = random.Random(seed)
        labels = [f"label {n}" for n in range(rng.randrange(2, 7))]
        gold = rng.choices(labels, weights=range(1, len(labels) + 1), k=rng.randrange(2, 60))
        guessed = [name if rng.random() < 0.6 else rng.choice(labels[: rng.randrange(1, 7)]) for name in gold]
        task = TextClassificationTask(labels=labels)
        scores = task.score([make_example(name) for name in gold], [make_prediction(name) for name in guessed])
        assert scores.values == pytest.approx(
            {
                "accuracy": metrics.accuracy_score(gold, guessed),
                "macro_f1": metrics.f1_score(gold, guessed, average="macro", zero_division=0),
                "micro_f1": metrics.f1_score(gold, guessed, average="micro", zero_division=0),
                "matthews": metrics.matthews_corrcoef(gold, guessed),
            },
            abs=1e-6,
        )
        for label, values in expected_by_label(gold, guessed, labels).items():
            assert scores.by_label[label] == pytest.approx(values, abs=1e-6)
        assert scores.confusion.labels == labels
        assert scores.confusion.counts == [
            [sum((g, t) == (row, column) for g, t in zip(gold, guessed, strict=True)) for column in labels]
            for row in labels
        ]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_multi_label_scores_match_sklearn(count):
    for seed in range(60):
        rng = random.Random(seed)
        labels = [f"label {n}" for n in range(count)]
        rows = rng.randrange(1, 40)
        gold, guessed = (
            np.array([[rng.random() < share for _ in labels] for _ in range(rows)]) for share in (0.4, rng.random())
        )
        gold[0, 0] = True  # a label that nothing has would make micro F1 0 / 0
        task = TextClassificationTask(labels=labels, multi_label=True)
        examples, predictions = (
            [make(*(name for name, there in zip(labels, row, strict=True) if there)) for row in table]
            for make, table in ((make_example, gold), (make_prediction, guessed))
        )
        scores = task.score(examples, predictions)
        right, answered, asked = (gold & guessed).sum(0), guessed.sum(0), gold.sum(0)
        f1s = [2 * r / (a + g) if a + g else 0.0 for r, a, g in zip(right, answered, asked, strict=True)]
        assert scores.values == pytest.approx(
            {
                "micro_f1": 2 * right.sum() / (answered.sum() + asked.sum()),
                "macro_f1": np.mean(f1s),
                "accuracy": (gold == guessed).all(1).mean(),
            },
            abs=1e-6,
        )
        if count > 1:
            for average in ("micro", "macro"):
                expected = metrics.f1_score(gold, guessed, average=average, zero_division=0)
                assert scores.values[f"{average}_f1"] == pytest.approx(expected, abs=1e-6)
        for n, label in enumerate(labels):
            assert scores.by_label[label] == pytest.approx(
                {
                    "precision": right[n] / answered[n] if answered[n] else 0.0,
                    "recall": right[n] / asked[n] if asked[n] else 0.0,
                    "f1": f1s[n],
                    "support": asked[n],
                },
                abs=1e-6,
            )


@pytest.mark.parametrize("options", [{}, SEVERAL])
def test_scores_of_constant_labels_raise_no_warnings(options):
    task = TextClassificationTask(labels=["a", "b"], **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert task.score([make_example("a")] * 3, [make_prediction("a")] * 3).values["accuracy"] == 1.0
        assert task.score([make_example("a")] * 3, [make_prediction("b")] * 3).values["accuracy"] == 0.0
        assert task.score([], []).values == {task.metric.name: 0.0}

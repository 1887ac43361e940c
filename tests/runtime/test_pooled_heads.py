"""Adapters whose heads pool, published and served: the same logits alone, in mixed batches, and by the card's code."""

import json

import pytest
import torch

import peftlab
from peftlab.base.quantization import disable_avx512_packing
from peftlab.errors import IntegrityError
from peftlab.interop import export_adapter, import_adapter, merge
from peftlab.store import MANIFEST_FILE, Store
from peftlab.tasks.prediction import forward
from tests.model_cards import model_of_card
from tests.runs import prepared_run
from tests.serving import build_feature, max_mixed_difference, predict_each
from tests.task_stores import KINDS, recipe_for, run
from tests.untrained import publish_changed

TOLERANCE = 1e-5
LORA = {"type": "lora", "r": 4}
ADAPTERS = {
    "own": ("classes", "auto", LORA),
    "mean": ("classes", "mean", LORA),
    "max": ("classes", "max", LORA),
    "last": ("classes", "last", {"type": "ia3"}),
    "rating": ("rating", "max", {"type": "bottleneck"}),
    "starts": ("relations", "auto", LORA),
    "relations-cls": ("relations", "cls", LORA),
    "virtual": ("relations", "auto", {"type": "prompt", "num_virtual_tokens": 2}),
    "prefixed": ("relations", "mean", {"type": "prefix", "num_virtual_tokens": 2}),
    "entities": ("entities", "auto", LORA),
}
POOLINGS = {
    "own": None,
    "relations-cls": None,
    "entities": None,
    "mean": "mean",
    "max": "max",
    "last": "last",
    "rating": "max",
    "prefixed": "mean",
    "starts": "entity-start",
    "virtual": "entity-start",
}


@pytest.fixture(scope="module")
def store(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pooled")
    for name, (kind, pooling, method) in ADAPTERS.items():
        recipe = recipe_for(folder / kind, tiny_base, kind, training={"learning_rate": 2e-2})
        values = {"name": name, "method": method, "base.pooling": pooling}
        peftlab.tune(recipe, overrides=values, store=folder / "store", device="cpu")
    return folder / "store"


@pytest.fixture
def bank(store):
    return peftlab.load(*ADAPTERS, store=store, device="cpu")


def rows_of(name):
    return KINDS[ADAPTERS[name][0]][1][:6]


def features_of(bank, name):
    return [feature for row in rows_of(name) for feature in build_feature(bank, name, row)]


@pytest.mark.parametrize("name", ADAPTERS)
def test_manifest_names_the_pooling_unless_it_is_the_own_head(store, name):
    manifest = Store(store).resolve(name).manifest
    pooling = POOLINGS[name]
    written = json.loads((Store(store).resolve(name).folder / MANIFEST_FILE).read_text(encoding="utf8"))
    assert written["task"].get("pooling") == pooling
    assert ("pooling" in written["task"]) == bool(pooling)
    assert "pooling" not in written["task"]["learned"]
    assert manifest.task.build().head.pooling == pooling
    assert manifest.head_modules == (("pooled_classifier",) if pooling else ("classifier",))


@pytest.mark.parametrize("name", ADAPTERS)
def test_code_of_the_card_gives_the_logits_of_the_bank(store, bank, name):
    model, task, inputs = model_of_card(Store(store).resolve(name).folder), bank.task(name), bank.base.inputs
    features = features_of(bank, name)
    assert name == "entities" or max(map(len, features)) > min(map(len, features))
    plain = forward(task, model, inputs, features)
    served = predict_each(bank, [(name, feature) for feature in features])
    for one, other in zip(plain, served, strict=True):
        torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("side", ["right", "left"])
def test_mixed_rows_equal_rows_alone(bank, side):
    bank.base.inputs.tokenizer.padding_side = side
    features = {(name, i): one for name in ADAPTERS for i, one in enumerate(features_of(bank, name))}
    alone_on_this_side = {"right": TOLERANCE, "left": None}[side]
    if alone_on_this_side is None:  # BERT counts positions from the padding: rows of one length are not padded
        length = max(len(one) for one in features.values())
        features = {key: one for key, one in features.items() if len(one) == length}
    assert {name for name, _ in features} >= {"starts"}
    outputs = predict_each(bank, [(name, feature) for (name, _), feature in features.items()])
    largest = max(1.0, *(float(logits.abs().max()) for logits in outputs))
    assert max_mixed_difference(bank, features, rounds=6) <= TOLERANCE * largest


def test_template_of_one_pooling_is_not_that_of_another(bank):
    assert len({bank._files(name).template_key for name in ("mean", "max", "last")}) == 3


def test_pooling_of_a_manifest_is_checked(store):
    with pytest.raises(IntegrityError, match=r"task.pooling: should be 'mean', 'last', 'max' or 'entity-start'"):
        publish_changed(store, "mean", name="damaged", told=lambda manifest: manifest["task"].update(pooling="sum"))


def test_average_needs_equal_poolings_and_an_ensemble_does_not(bank):
    with pytest.raises(
        IntegrityError, match="the head of mean@1 reads the mean pooling of the token states, that of max"
    ):
        bank.compose("both", "average", ["mean", "max"])
    bank.compose("voted", "ensemble", ["mean", "max", "own"])
    feature = features_of(bank, "mean")[0]
    parts = predict_each(bank, [(name, feature) for name in ("mean", "max", "own")])
    [voted] = predict_each(bank, [("voted", feature)])
    torch.testing.assert_close(voted, sum(parts) / 3, rtol=TOLERANCE, atol=TOLERANCE)


def test_stack_takes_the_head_of_the_top(bank):
    bank.compose("stacked", "stack", ["own", "starts"])
    [prediction] = bank.predict([rows_of("starts")[0]], adapters="stacked")
    assert prediction.prediction.label in bank.task("starts").labels


def test_warm_start_leaves_a_head_that_pools_otherwise(store, tmp_path, tiny_base):
    recipe = recipe_for(tmp_path / "classes", tiny_base, "classes")
    overrides = {"method": {"type": "lora", "r": 4, "start_from": "mean"}}
    same = prepared_run(recipe, {**overrides, "base.pooling": "mean"}, store)
    assert str(same.start).endswith("tensors, and its head.")
    other = prepared_run(recipe, {**overrides, "base.pooling": "max"}, store)
    assert "and not its head: it reads the mean pooling of the token states, and this recipe's head the max" in str(
        other.start
    )
    own = prepared_run(recipe, overrides, store)
    assert "and this recipe's head what the architecture's own does" in str(own.start)
    assert "bert.pooler.dense" in str(own.start)


def test_export_to_peft_points_to_the_card(store, bank, tmp_path):
    exported = export_adapter("mean", tmp_path / "exported", "peft", store=store)
    assert exported.command == (
        f"see {tmp_path / 'exported' / 'README.md'}: its code builds the model with a head that pools, "
        "and loads the adapter"
    )
    with pytest.raises(IntegrityError, match="its head pools token states by a class of peftlab's"):
        import_adapter(exported.folder, "again", task="text-classification", labels=["a", "b", "c"], store=tmp_path)
    features = features_of(bank, "mean")
    plain = forward(bank.task("mean"), model_of_card(exported.folder), bank.base.inputs, features)
    served = predict_each(bank, [("mean", feature) for feature in features])
    torch.testing.assert_close(torch.stack(plain), torch.stack(served), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["mean", "max", "starts"])
def test_merged_model_is_loaded_by_the_code_of_its_readme(store, bank, tmp_path, name):
    merged, features = merge(name, tmp_path / "merged", store=store), features_of(bank, name)
    assert json.loads((merged.folder / "config.json").read_text(encoding="utf8"))["architectures"] == ["BertModel"]
    plain = forward(bank.task(name), model_of_card(merged.folder), bank.base.inputs, features)
    served = predict_each(bank, [(name, feature) for feature in features])
    torch.testing.assert_close(torch.stack(plain), torch.stack(served), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantized_card_builds_the_published_model(tiny_base, tmp_path, quantization):
    recipe = recipe_for(tmp_path / "relations", tiny_base, "relations")
    overrides = {"base.quantization": quantization}
    result = peftlab.tune(recipe, overrides=overrides, store=tmp_path / "store", device="cpu")
    bank = peftlab.load("relations", store=tmp_path / "store", device="cpu")
    features = [one for row in KINDS["relations"][1][:6] for one in build_feature(bank, "relations", row)]
    model = model_of_card(result.adapter.folder)
    disable_avx512_packing(model)  # as peftlab does, see decision 0016
    plain = forward(result.task, model, bank.base.inputs, features)
    attached = forward(result.task, bank.model("relations"), bank.base.inputs, features)
    torch.testing.assert_close(torch.stack(plain), torch.stack(attached), rtol=TOLERANCE, atol=TOLERANCE)


def test_output_says_what_the_head_pools(store, tiny_base, tmp_path):
    recipe = recipe_for(tmp_path, tiny_base, "classes")
    assert "head: the architecture's own head" in run("check", recipe, "--device", "cpu").output
    chosen = run("check", recipe, "--device", "cpu", "-o", "base.pooling=max")
    assert "head: max pooling, as the recipe says" in chosen.output

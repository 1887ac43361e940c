"""`method: head` from recipe to predictions: an adapter without a delta is an adapter like any other."""

import json
import warnings

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file

import peftlab
from peftlab.base import find_base
from peftlab.data import Row
from peftlab.errors import TuningInterrupted
from peftlab.recipe import BaseSection
from peftlab.tasks.inputs.text import TextInputs, load_tokenizer
from peftlab.tasks.prediction import forward
from peftlab.tuning import tune
from tests.architectures import build
from tests.task_stores import one_line, recipe_for, run
from tests.tuning.test_tune import ProgressRecorder

HEAD = {"type": "head"}
SENTENCE = "the train was late , it rained ."


@pytest.fixture(scope="module")
def head_store(tiny_base, tmp_path_factory):
    """`classes` with its head alone, and `topics` with LoRA, on one base."""
    folder = tmp_path_factory.mktemp("heads")
    for kind, method in (("classes", HEAD), ("topics", {"type": "lora"})):
        tune(recipe_for(folder / kind, tiny_base, kind), overrides={"method": method}, store=folder / "store")
    return folder / "store"


@pytest.mark.parametrize("architecture", ["bert-without-pooler", "deberta-v2", "modernbert"])
@pytest.mark.parametrize("kind", ["classes", "entities"])
def test_plain_peft_loads_head_adapter_without_warning(tmp_path, architecture, kind):
    folder = build(architecture, tmp_path / "base")
    recipe = recipe_for(tmp_path / kind, folder, kind)
    result = tune(recipe, overrides={"method": HEAD}, store=tmp_path / "store")
    task = result.adapter.task
    auto_class = getattr(transformers, task.head.auto_class)
    plain = auto_class.from_pretrained(folder, num_labels=len(task.head.labels))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        plain = PeftModel.from_pretrained(plain, result.adapter.folder).eval()
    bank = peftlab.load(kind, store=tmp_path / "store")
    tokenizer = load_tokenizer(find_base(BaseSection(model=str(folder))))
    rows = [task.read_input(Row({"text": text}, "")) for text in (SENTENCE, "nobody came .")]
    features = [feature for row in rows for feature in task.encode([row], TextInputs(tokenizer), 64, training=False)[0]]
    mine, theirs = (forward(task, model, TextInputs(tokenizer), features) for model in (bank.model(kind), plain))
    assert all(map(torch.equal, mine, theirs))


def test_head_adapter_contains_only_head_weights(head_store):
    folder = head_store / "classes" / "1"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["target_modules"] == "dummy-target-modules"
    manifest = json.loads((folder / "peftlab.json").read_text())
    assert (manifest["method"], manifest["parameters"]["trained"]) == ("head", 32 * 3 + 3)
    card = (folder / "README.md").read_text()
    assert "only its head is new." in card
    assert "tags: [peftlab, head]" in card


def test_head_adapter_in_mixed_batch_matches_single_rows(head_store):
    alone = peftlab.load("classes", store=head_store).predict(SENTENCE)
    both = peftlab.load("topics", "classes", store=head_store)
    both.predict(SENTENCE, adapters="topics")
    assert both.predict(SENTENCE, adapters="classes") == alone


def test_commands_accept_head_adapter(head_store, tmp_path):
    rows = head_store.parent / "classes" / "test.jsonl"
    assert run("predict", "classes", "--store", head_store, "It rained .").exit_code == 0
    assert run("evaluate", "classes", "--data", rows, "--store", head_store).exit_code == 0
    assert "classes" in run("adapters", "list", "--store", head_store).output
    assert "head" in run("adapters", "show", "classes", "--store", head_store).output
    assert run("adapters", "verify", "--store", head_store).exit_code == 0
    shown = run("recipe", "show", head_store / "classes" / "1" / "recipe.yaml").output
    assert "method: type: head start_from: null data:" in one_line(shown)


def test_tune_reports_cached_layers(tiny_base, tmp_path):
    recipe = recipe_for(tmp_path / "classes", tiny_base, "classes", method={"layers_to_transform": 1})
    output = one_line(run("tune", recipe, "--store", tmp_path / "store").output)
    assert "1 of 2 layers are frozen. They run without dropout and only once per row" in output


def test_resumed_head_run_yields_equal_adapter(tiny_base, tmp_path):
    recipe = recipe_for(tmp_path / "rows", tiny_base, "entities", training={"num_train_epochs": 2})
    overrides = {"method": HEAD}
    straight = tune(recipe, overrides=overrides, store=tmp_path / "straight")
    with pytest.raises(TuningInterrupted):
        tune(recipe, overrides=overrides, store=tmp_path / "store", progress=ProgressRecorder(interrupt_at=4))
    assert not list((tmp_path / "store").rglob("frozen-*"))
    resumed = tune(recipe, overrides=overrides, store=tmp_path / "store", resume=True)
    mine, theirs = (load_file(r.adapter.folder / "adapter_model.safetensors") for r in (straight, resumed))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)

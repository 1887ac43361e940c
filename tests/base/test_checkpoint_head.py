"""Checkpoints that already have a head for the task's model class: it is replaced by a new one, or continued."""

import json
import re

import pytest
import torch
import transformers
from safetensors.torch import load_file

import peftlab
from peftlab.errors import IntegrityError, RecipeError
from tests.architecture_sweep import build_architecture, sweep_recipe
from tests.architectures import build
from tests.runs import prepared_run
from tests.sequence_models import build_sequence_model
from tests.serving import build_feature, predict_each
from tests.task_stores import recipe_for

CLASSES = ["good", "bad", "fair"]  # the labels of `classes` as they come in its rows
NAMES = {"num_labels": 3, "id2label": dict(enumerate(CLASSES)), "label2id": {n: i for i, n in enumerate(CLASSES)}}


def save_with_head(folder, auto_class, architecture="bert", **config):
    """A tiny base saved from one of Transformers' classes with a head, whose numbers are all 7."""
    if architecture == "t5":
        build_sequence_model(folder, "t5")
    else:
        build(architecture, folder)
    model = getattr(transformers, auto_class).from_pretrained(folder, **config)
    outside = set(model.state_dict()) - {f"{model.base_model_prefix}.{n}" for n in model.base_model.state_dict()}
    for name, parameter in model.named_parameters():
        if name in outside and "encoder." not in name and "decoder." not in name and "shared" not in name:
            torch.nn.init.constant_(parameter, 7.0)
    model.save_pretrained(folder)
    return folder


def head_parameters(run):
    head = tuple(f"base_model.model.{name}." for name in run.base.head_modules)
    return {name: p for name, p in run.model.named_parameters() if name.startswith(head) and ".default" in name}


@pytest.mark.parametrize(
    ("architecture", "auto_class", "kind", "num_labels"),
    [
        ("roberta", "AutoModelForSequenceClassification", "classes", 5),
        ("distilbert", "AutoModelForSequenceClassification", "classes", 3),
        ("electra", "AutoModelForSequenceClassification", "rating", 1),
        ("gpt2", "AutoModelForSequenceClassification", "topics", 2),
        ("deberta-v2", "AutoModelForTokenClassification", "entities", 5),
        ("modernbert", "AutoModelForTokenClassification", "entities", 9),
        ("bert", "AutoModelForSequenceClassification", "entities", 5),  # another class's head of the same name
        ("roberta", "AutoModelForQuestionAnswering", "answers", 2),
        ("t5", "AutoModelForQuestionAnswering", "answers", 2),
    ],
)
def test_head_of_checkpoint_is_replaced(tmp_path, architecture, auto_class, kind, num_labels):
    base = save_with_head(tmp_path / "base", auto_class, architecture, num_labels=num_labels)
    run = prepared_run(recipe_for(tmp_path, base, kind))
    parameters = head_parameters(run)
    assert parameters
    assert not any((parameter == 7).any() for parameter in parameters.values())
    assert run.num_trainable > sum(parameter.numel() for parameter in parameters.values())
    if (auto_class, kind) != ("AutoModelForSequenceClassification", "entities"):
        assert "it is replaced by a new one. To continue it, set base.head: checkpoint." in run.base.head_note


def test_new_head_is_that_of_base_without_head(tmp_path):
    plain = prepared_run(recipe_for(tmp_path / "plain", build("roberta", tmp_path / "base"), "classes"))
    base = save_with_head(tmp_path / "with-head", "AutoModelForSequenceClassification", "roberta", num_labels=4)
    other = head_parameters(prepared_run(recipe_for(tmp_path / "other", base, "classes")))
    assert plain.base.head_note == ""
    for name, parameter in head_parameters(plain).items():
        assert parameter.shape == other[name].shape
        assert torch.isclose(parameter.std(), other[name].std(), rtol=0.3, atol=1e-6)


def model_of_card(adapter):
    """What the code of the model card makes."""
    card = (adapter.folder / "README.md").read_text(encoding="utf8")
    [code] = re.findall(r"With only PEFT and Transformers:\n\n```python\n(.*?)```", card, re.DOTALL)
    scope = {}
    exec(code.replace("path/to/this/folder", str(adapter.folder)), scope)
    return scope["model"].eval()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_card_of_base_without_padding_token_names_one(tmp_path, architecture):
    base = build_architecture(architecture, tmp_path / "base")
    recipe = sweep_recipe(tmp_path, base, "classification")
    adapter = peftlab.tune(recipe, store=tmp_path / "store", device="cpu", publish_anyway=True).adapter
    bank, features = peftlab.load(adapter.name, store=tmp_path / "store", device="cpu"), []
    for text in ("it rained .", "nobody came by train , it rained ."):
        features += build_feature(bank, adapter.name, {"text": text})
    with torch.no_grad():
        logits = model_of_card(adapter)(**bank.base.inputs.pad(features)).logits
    for row, served in zip(logits, predict_each(bank, [(adapter.name, f) for f in features]), strict=True):
        torch.testing.assert_close(row, served, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("auto_class", "kind"),
    [("AutoModelForSequenceClassification", "classes"), ("AutoModelForTokenClassification", "entities")],
)
def test_adapter_of_checkpoint_with_head_is_that_of_plain_peft(tmp_path, auto_class, kind):
    base = save_with_head(tmp_path / "base", auto_class, "roberta", num_labels=4)
    result = peftlab.tune(recipe_for(tmp_path, base, kind), store=tmp_path / "store", device="cpu", publish_anyway=True)
    assert result.adapter.manifest.reload_difference <= 1e-5
    bank = peftlab.load(kind, store=tmp_path / "store", device="cpu")
    plain = model_of_card(result.adapter)
    inputs = {"input_ids": torch.tensor([[0, 7, 8, 9, 2]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    with torch.no_grad():
        torch.testing.assert_close(bank.model(kind)(**inputs).logits, plain(**inputs).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert"])
def test_head_of_checkpoint_is_continued(tmp_path, architecture):
    auto_class = "AutoModelForSequenceClassification"
    base = save_with_head(tmp_path / "base", auto_class, architecture, **NAMES)
    labels = {"task": {"type": "text-classification", "labels": CLASSES}}
    run = prepared_run(recipe_for(tmp_path, base, "classes", **labels), {"base.head": "checkpoint"})
    saved = load_file(base / "model.safetensors")
    for name, parameter in head_parameters(run).items():
        plain = name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
        assert torch.equal(parameter, saved[plain])
        assert parameter.requires_grad
    assert "for good, bad, fair): training continues it." in run.base.head_note


@pytest.mark.parametrize(
    ("auto_class", "config", "kind", "message"),
    [
        ("AutoModel", {}, "classes", "has no head for text-classification. Take base.head: new"),
        ("AutoModelForTokenClassification", {"num_labels": 3}, "classes", "has no head for text-classification"),
        ("AutoModelForSequenceClassification", {"num_labels": 4}, "classes", "does not fit this task, whose outputs"),
        (
            "AutoModelForSequenceClassification",
            {**NAMES, "id2label": {0: "joy", 1: "fear", 2: "rage"}},
            "classes",
            "head, for joy, fear, rage does not fit this task, whose outputs are: bad, fair, good. Set task.labels",
        ),
    ],
)
def test_head_that_does_not_fit_is_not_continued(tmp_path, auto_class, config, kind, message):
    base = save_with_head(tmp_path / "base", auto_class, **config)
    with pytest.raises(RecipeError) as error:
        prepared_run(recipe_for(tmp_path, base, kind), {"base.head": "checkpoint"})
    assert message in str(error.value)
    assert "base.head" in str(error.value)


def test_backbone_of_other_shape_than_config_says_is_refused(tmp_path):
    base = build("bert", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(IntegrityError, match=r"is not consistent: by its config.json, bert.encoder.* another shape"):
        prepared_run(recipe_for(tmp_path, base, "classes"))

"""The second adapter of a kind is poured of a mould that the first one left: it answers as plain PEFT does with it."""

import json

import pytest
import torch
from peft import PeftModel

import peftlab
from peftlab.base import load_with_head
from peftlab.errors import IntegrityError
from peftlab.runtime import loaded_base
from peftlab.tasks.prediction import forward
from peftlab.tasks.registry import TASKS
from tests.architectures import build
from tests.methods.test_method_matrix import METHODS, enlarge_weights
from tests.serving import build_feature, predict_each
from tests.task_stores import recipe_for
from tests.untrained import perturbed, publish_changed, publish_untrained

TOLERANCE = 1e-5
TEXTS = ("the train was late , it rained .", "nobody came .", "the letter was quiet .")
MADE_BY_PEFT_EACH_TIME = {
    *("prompt", "p-tuning", "p-tuning-lstm"),  # these change the base's input as a whole
    *("randlora", "vera", "vblora"),  # tensors that all layers share are in none of them
    "shira",  # PEFT makes sparse masks of the indices in the file
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Of each method an adapter, and another with other numbers, whose name ends in -2."""
    folder = tmp_path_factory.mktemp("moulds")
    recipe = recipe_for(folder / "rows", enlarge_weights(build("bert", folder)), "classes")
    for name, fields in METHODS.items():
        publish_untrained(folder / "store", recipe, {"name": name, "method": fields})
        publish_changed(folder / "store", name, lambda tensors: perturbed(tensors, seed=2), name=f"{name}-2")
    return folder / "store"


@pytest.fixture(scope="module")
def bank(store):
    """With the first of each method."""
    return peftlab.load(*METHODS, store=store, device="cpu")


@pytest.fixture
def created_by_peft(monkeypatch):
    """The adapters that PEFT is asked for."""
    created, attach = [], loaded_base.attach_adapter

    def record_adapter(read, *args, **options):
        created.append(str(read.adapter))
        return attach(read, *args, **options)

    monkeypatch.setattr(loaded_base, "attach_adapter", record_adapter)
    return created


def answers(bank, name):
    features = [feature for text in TEXTS for feature in build_feature(bank, name, {"text": text})]
    return torch.stack(predict_each(bank, [(name, feature) for feature in features]))


def plain_answers(bank, name):
    """By PEFT and Transformers alone."""
    task = bank.task(name)
    plain, _ = load_with_head(bank.base.files, task)
    plain = PeftModel.from_pretrained(plain, bank.adapter(name).folder).eval()
    features = [feature for text in TEXTS for feature in build_feature(bank, name, {"text": text})]
    return torch.stack(forward(task, plain, bank.base.inputs, features))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", METHODS)
def test_adapter_from_template_matches_plain_peft(bank, created_by_peft, name):
    before = answers(bank, name)
    bank.add(f"{name}-2")
    assert created_by_peft == ([f"{name}-2@1"] if name in MADE_BY_PEFT_EACH_TIME else [])
    expected = plain_answers(bank, f"{name}-2")
    assert (before - expected).abs().max() > 0.1  # or else it would prove nothing
    assert_close(answers(bank, f"{name}-2"), expected)
    assert torch.equal(answers(bank, name), before)
    assert_close(before, plain_answers(bank, name))


def test_methods_with_template(bank):
    left = {name for name in METHODS if bank._files(name).template_key in bank._cache._templates}
    assert METHODS.keys() - left == MADE_BY_PEFT_EACH_TIME


def test_template_works_after_first_adapter_is_removed(store, created_by_peft):
    bank = peftlab.load("pfeiffer", "lora", "head", store=store, device="cpu")
    for name in ("pfeiffer", "lora", "head"):
        bank.remove(name)
        bank.add(f"{name}-2")
        assert_close(answers(bank, f"{name}-2"), plain_answers(bank, f"{name}-2"))
    assert created_by_peft == ["pfeiffer@1", "lora@1", "head@1"]


def test_template_has_no_tensors_of_first_adapter(store):
    bank = peftlab.load("pfeiffer", store=store, device="cpu")
    [mould] = bank._cache._templates.values()
    own = {tensor.data_ptr() for tensor in bank._files("pfeiffer").tensors.values()}
    poured = [*mould._factories.values(), mould._head]
    assert not own & {p.data_ptr() for part in poured for p in part._module.parameters()}


@pytest.mark.parametrize("base", ["gpt2", "deberta-v2", "llama"])
def test_template_on_other_architectures(tmp_path, created_by_peft, base):
    recipe = recipe_for(tmp_path / "rows", enlarge_weights(build(base, tmp_path)), "classes")
    for name in ("lora", "dora", "pfeiffer", "last-layers"):
        publish_untrained(tmp_path / "store", recipe, {"name": name, "method": METHODS[name]})
        publish_changed(tmp_path / "store", name, lambda tensors: perturbed(tensors, seed=2), name=f"{name}-2")
        bank = peftlab.load(name, f"{name}-2", store=tmp_path / "store", device="cpu")
        for one in bank.names:
            assert_close(answers(bank, one), plain_answers(bank, one))
        assert created_by_peft.pop() == f"{name}@1"
        assert not created_by_peft


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("from_template", [True, False], ids=["from_template", "from_peft"])
def test_half_precision_file_matches_plain_peft(store, dtype, from_template):
    name = f"{str(dtype)[6:]}-{'template' if from_template else 'peft'}"
    publish_changed(store, "pfeiffer-2", lambda tensors: {key: t.to(dtype) for key, t in tensors.items()}, name=name)
    bank = peftlab.load(*["pfeiffer"] * from_template, name, store=store, device="cpu")
    assert_close(answers(bank, name), plain_answers(bank, name))


# what is an adapter of that kind, and what is not


def test_reordered_configuration_shares_template(store, tmp_path, created_by_peft):
    def reorder_config(config):
        config["target_modules"] = sorted(config["target_modules"], reverse=True)
        config["peft_version"], config["base_model_name_or_path"] = "0.0.1", "elsewhere"

    publish_changed(store, "lora", name="lora-reordered", configured=reorder_config)
    bank = peftlab.load("lora", "lora-reordered", store=store, device="cpu")
    assert created_by_peft == ["lora@1"]
    assert torch.equal(answers(bank, "lora-reordered"), answers(bank, "lora"))


@pytest.mark.parametrize(("key", "value"), [("lora_alpha", 1), ("use_rslora", True)])
def test_different_configuration_has_separate_template(store, created_by_peft, key, value):
    name = f"other-{key.replace('_', '-')}"
    publish_changed(store, "lora", name=name, configured=lambda config: config.update({key: value}))
    bank = peftlab.load("lora", name, store=store, device="cpu")
    assert created_by_peft == ["lora@1", f"{name}@1"]
    assert_close(answers(bank, name), plain_answers(bank, name))
    assert (answers(bank, name) - answers(bank, "lora")).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["topics", "entities", "rating"])
def test_different_task_has_separate_template(store, tmp_path, created_by_peft, kind):
    classes = peftlab.load("lora", store=store, device="cpu")
    recipe = recipe_for(tmp_path / "rows", classes.base.files.folder, kind)
    publish_untrained(store, recipe, {"name": kind, "method": METHODS["lora"]})
    created_by_peft.clear()
    classes.add(kind)
    assert created_by_peft == [f"{kind}@1"]
    text = dict.fromkeys(TASKS[classes.task(kind).type].input_columns(classes.task(kind)), TEXTS[0])
    [feature] = build_feature(classes, kind, text)
    [expected] = forward(classes.task(kind), classes.model(kind), classes.base.inputs, [feature])
    assert_close(predict_each(classes, [(kind, feature)])[0], expected)


def remove_tensor(tensors):
    return {name: tensors[name] for name in sorted(tensors)[1:]}


def add_tensor(tensors):
    name = next(name for name in sorted(tensors) if ".layer.1." in name)
    return {**tensors, name.replace(".layer.1.", ".layer.7."): tensors[name]}


def change_shape(tensors):
    name = sorted(tensors)[-1]
    return {**tensors, name: torch.cat([tensors[name], tensors[name]])}


def change_num_labels(tensors):
    return {name: torch.cat([t, t]) if "classifier" in name else t for name, t in tensors.items()}


FAULTS = {
    remove_tensor: ": missing",
    add_tensor: "layer.7.*: not in this model",
    change_shape: r"\) where the model has \(",
    change_num_labels: r"classifier.bias: \(6,\) where the model has \(3,\)",
}


@pytest.mark.parametrize("method", ["lora", "pfeiffer"])
@pytest.mark.parametrize(("change", "message"), FAULTS.items(), ids=[change.__name__ for change in FAULTS])
def test_mismatched_tensors_raise_error_despite_template(store, change, message, method):
    name = f"{method}-{change.__name__.replace('_', '-')}"
    publish_changed(store, method, change, name=name)
    bank = peftlab.load(method, f"{method}-2", store=store, device="cpu")
    before = bank.names, bank.num_bytes, answers(bank, method), len(bank._cache._templates)
    with pytest.raises(IntegrityError, match=f"(?s){name}@1 does not fit its base:.*{message}"):
        bank.add(name)
    after = bank.names, bank.num_bytes, answers(bank, method), len(bank._cache._templates)
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert before[3] == after[3] == 1


def test_template_key_is_json(bank):
    head, config, shapes = json.loads(bank._files("lora").template_key)
    assert head == ["AutoModelForSequenceClassification", None, 3, "single_label_classification"]
    assert (config["peft_type"], config["r"]) == ("LORA", 4)
    assert shapes["base_model.model.classifier.bias"] == [3]

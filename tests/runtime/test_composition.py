"""Several adapters as one, against the same done by hand."""

import pytest
import torch
from safetensors.torch import load_file

import peftlab
from peftlab.errors import AdapterNotFoundError, IntegrityError
from tests.serving import build_feature, predict_each
from tests.task_stores import recipe_for

TOLERANCE = 1e-5
TEXTS = ("it rained .", "the train was late , it rained .", "nobody came .")
ADAPTERS = {
    "books": {"method": {"type": "lora", "r": 4}},
    "films": {"method": {"type": "lora", "r": 2, "lora_alpha": 8}},
    "shop": {"method": {"type": "ia3"}},
    "stays": {"method": {"type": "ia3"}},
    "narrow": {"method": {"type": "bottleneck", "variant": "pfeiffer"}},
    "virtual": {"method": {"type": "prompt", "num_virtual_tokens": 2}},
    "last": {"method": {"type": "last-layers", "layers": 1}},
}


@pytest.fixture(scope="module")
def store(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("composed")
    recipe = recipe_for(folder / "classes", tiny_base, "classes", training={"learning_rate": 2e-2})
    for seed, (name, changes) in enumerate(ADAPTERS.items()):
        overrides = {"name": name, "training.seed": seed, **changes}
        peftlab.tune(recipe, overrides=overrides, store=folder / "store", device="cpu")
    peftlab.tune(recipe_for(folder / "entities", tiny_base, "entities"), store=folder / "store", device="cpu")
    return folder / "store"


@pytest.fixture
def bank(store):
    return peftlab.load(*ADAPTERS, "entities", store=store, device="cpu")


def logits(bank, name):
    return torch.stack(
        [predict_each(bank, [(name, build_feature(bank, name, {"text": text})[0])])[0] for text in TEXTS]
    )


def expected_logits(bank, weights, head):
    """The base with ΔW = Σ weight · scaling · B A added to its weights, and head = Σ weight · head, in plain torch."""
    model = bank.base.full_precision_copy(bank._files(next(iter(weights)))).unload()
    state = model.state_dict()
    files = {name: load_file(bank.adapter(name).folder / "adapter_model.safetensors") for name in weights}
    scaling = {name: bank._files(name).config["lora_alpha"] / bank._files(name).config["r"] for name in weights}
    for name, weight in weights.items():
        for key, down in files[name].items():
            if key.endswith("lora_A.weight"):
                up = files[name][key.replace("lora_A", "lora_B")]
                place = key.removeprefix("base_model.model.").replace("lora_A.", "")
                state[place] += weight * scaling[name] * up @ down
    for place in ("classifier.weight", "classifier.bias"):
        state[place] = sum(share * files[name][f"base_model.model.{place}"] for name, share in head.items())
    model.load_state_dict(state)
    return model_logits(bank, model, next(iter(weights)))


def model_logits(bank, model, name):
    inputs = [build_feature(bank, name, {"text": text})[0].inputs for text in TEXTS]
    with torch.no_grad():
        return torch.stack([model.eval()(**{k: torch.tensor([v]) for k, v in one.items()}).logits[0] for one in inputs])


def test_lora_stack_is_sum_of_updates(bank):
    bank.compose("both", "stack", ["books", "films"])
    expected = expected_logits(bank, {"books": 1.0, "films": 1.0}, {"films": 1.0})
    torch.testing.assert_close(logits(bank, "both"), expected, rtol=0, atol=TOLERANCE)
    assert (logits(bank, "both") - logits(bank, "films")).abs().max() > 1e-3


def test_lora_average_with_different_ranks(bank):
    bank.compose("mean", "average", ["books", "films"], [3, 1])
    weights = {"books": 0.75, "films": 0.25}
    torch.testing.assert_close(logits(bank, "mean"), expected_logits(bank, weights, weights), rtol=0, atol=TOLERANCE)


def test_module_stack_runs_both_modules(bank):
    bank.compose("scaled-twice", "stack", ["shop", "stays"])
    model = bank.full_precision_copy("stays").get_base_model()
    below = load_file(bank.adapter("shop").folder / "adapter_model.safetensors")
    for name, module in model.named_modules():
        for held in getattr(module, "ia3_l", {}).values():
            held.data *= below[f"base_model.model.{name}.ia3_l"].reshape(held.shape)  # (x l₁) l₂ = x (l₁ l₂)
    torch.testing.assert_close(logits(bank, "scaled-twice"), model_logits(bank, model, "stays"), rtol=0, atol=TOLERANCE)


def test_module_average_is_parameter_average(bank):
    bank.compose("mean", "average", ["shop", "stays"])
    model = bank.full_precision_copy("stays").get_base_model()
    other = bank.model("shop").state_dict()
    for name, tensor in model.state_dict().items():
        if "ia3_l" in name or "classifier" in name:
            tensor.copy_((tensor + other[name]) / 2)
    torch.testing.assert_close(logits(bank, "mean"), model_logits(bank, model, "stays"), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("names", [["books", "narrow"], ["narrow", "books"], ["shop", "narrow"]])
def test_stack_of_different_methods(bank, names):
    bank.compose("upon", "stack", names)
    found = logits(bank, "upon")
    assert all((found - logits(bank, name)).abs().max() > 2e-5 for name in names)
    assert torch.isfinite(found).all()


def test_ensemble_decodes_mean_logits(bank):
    bank.compose("council", "ensemble", ["books", "shop", "virtual"], [2, 1, 1])
    expected = (2 * logits(bank, "books") + logits(bank, "shop") + logits(bank, "virtual")) / 4
    torch.testing.assert_close(logits(bank, "council"), expected, rtol=0, atol=TOLERANCE)
    answers = bank.predict(list(TEXTS), adapters="council")
    labels = bank.task("books").labels
    assert [answer.prediction.label for answer in answers] == [labels[i] for i in expected.argmax(-1)]


def test_composition_in_mixed_batch_and_new_versions(bank):
    bank.compose("mean", "average", ["books", "films"])
    bank.compose("council", "ensemble", ["books", "stays"])
    names = ["mean", "entities", "council", "books"]
    answers = bank.predict([TEXTS[0]] * 4, adapters=names)
    assert [answer.adapter for answer in answers] == names
    alone = [bank.predict(TEXTS[0], adapters=name)[0].prediction for name in names]
    assert [type(answer.prediction) for answer in answers] == [type(prediction) for prediction in alone]
    with pytest.raises(ValueError, match="'books' is part of 'mean'; remove that first"):
        bank.remove("books")
    bank.remove("mean")
    bank.remove("council")
    bank.remove("books")
    assert "mean" not in bank.names
    assert len(bank._cache._slots) == len(bank.names)


WRONG = {
    ("average", ("books", "shop")): "of different methods, or change other modules",
    ("average", ("books", "entities")): r"books@1 \(text-classification\) has the labels bad, fair, good; entities@1",
    ("ensemble", ("books", "entities")): "has the labels",
    ("stack", ("books", "virtual")): "virtual@1 changes more than single modules of the base",
    ("stack", ("books", "last")): "changes 'encoder.layer.1.*', another replaces the module that contains it",
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.items())
def test_invalid_composition_raises_error(bank, arguments, message):
    names = bank.names
    with pytest.raises(IntegrityError, match=message):
        bank.compose("new", arguments[0], arguments[1])
    assert bank.names == names


def test_wrong_names_and_weights_raise_error(bank):
    with pytest.raises(AdapterNotFoundError, match="Did you mean 'books'"):
        bank.compose("new", "stack", ["boks", "films"])
    with pytest.raises(ValueError, match=r"no composition mode 'avrage'\. Did you mean 'average'"):
        bank.compose("new", "avrage", ["books", "films"])
    with pytest.raises(ValueError, match="2 adapters need 2 weights"):
        bank.compose("new", "average", ["books", "films"], [1])
    with pytest.raises(ValueError, match="at least two adapters, not 1"):
        bank.compose("new", "ensemble", ["books"])
    with pytest.raises(ValueError, match="a stack has no weights"):
        bank.compose("new", "stack", ["books", "films"], [1, 2])
    with pytest.raises(ValueError, match="there is an adapter 'films' in this bank already"):
        bank.compose("films", "stack", ["books", "shop"])
    assert "new" not in bank.names

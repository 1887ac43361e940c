import re
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from peft import LoraConfig, PeftType, get_peft_model
from transformers import AutoModelForTokenClassification, set_seed
from transformers.pytorch_utils import Conv1D

from benchmarks.method_scores import CANDIDATES, LADDER, Outcome, best_rate
from benchmarks.results import load_runs
from peftlab.base import load_base
from peftlab.errors import RecipeError
from peftlab.methods import (
    METHODS,
    count_trainable_parameters,
    create_peft_model,
    method_info,
    saved_bytes,
    size_warning,
)
from peftlab.methods.target_modules import in_out_features
from peftlab.recipe import (
    PEFT_METHODS,
    UNSUPPORTED_PEFT_METHODS,
    BaseSection,
    Full,
    Head,
    LnTuning,
    Lora,
    MethodSection,
    PeftMethod,
    parse_method,
)
from peftlab.recipe.plugins import section_types
from peftlab.tasks.token_classification import TokenClassificationTask

TASK = TokenClassificationTask(labels=["PER", "LOC"])


@pytest.fixture
def base(tiny_base):
    return load_base(BaseSection(model=str(tiny_base)), TASK, seed=0, device="cpu")


def test_all_linear_targets_all_but_head(base):
    model = create_peft_model(base, Lora(r=4), TASK)
    targets = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    linears = {n for n, m in AutoModelForTokenClassification.from_pretrained(base.files.folder).named_modules()
               if isinstance(m, torch.nn.Linear)}  # fmt: skip
    assert {name.removeprefix("base_model.model.") for name in targets} == linears - {"classifier"}


def test_only_delta_and_head_are_trainable(base):
    model = create_peft_model(base, Lora(r=4), TASK)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name or "classifier.modules_to_save" in name for name in trained)
    assert count_trainable_parameters(model) == sum(p.numel() for n, p in model.named_parameters() if n in trained)


@pytest.mark.parametrize("fields", [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_alpha": 3, "r": 2}])
def test_peft_model_matches_plain_peft(base, fields):
    """Same seeds, same PEFT configuration by hand: equal outputs after one step of training."""
    set_seed(7)
    ours = create_peft_model(base, Lora(target_modules=["query", "value"], **fields), TASK)
    plain = AutoModelForTokenClassification.from_pretrained(base.files.folder, num_labels=5)
    plain.classifier.load_state_dict(base.model.classifier.original_module.state_dict())
    set_seed(7)
    by_hand = get_peft_model(plain, LoraConfig(task_type="TOKEN_CLS", target_modules=["query", "value"],
                                               **{"r": 8, "lora_alpha": 16, **fields}))  # fmt: skip
    batch = {"input_ids": torch.randint(5, 40, (2, 9)), "labels": torch.randint(0, 5, (2, 9))}
    outputs = []
    for model in (ours, by_hand):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        model.eval()
        model(**batch).loss.backward()
        optimizer.step()
        outputs.append(model(**batch).logits)
    assert torch.equal(*outputs)


def test_unknown_target_module_suggests_nearest_name(base):
    with pytest.raises(RecipeError) as error:
        create_peft_model(base, Lora(target_modules=["qurey", "value", "classifier"]), TASK)
    assert "'qurey' matches no Linear layer of this base. Did you mean 'query'?" in str(error.value)
    assert "'classifier' matches no Linear layer" in str(error.value)
    assert "'value'" not in str(error.value)


def adapted_layer_names(model):
    return {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}


@pytest.mark.parametrize("layers", [1, [1], [1, 0]])
def test_layers_to_transform_matches_peft(base, layers):
    ours = adapted_layer_names(
        create_peft_model(base, Lora(target_modules=["query", "dense"], layers_to_transform=layers), TASK)
    )
    plain = AutoModelForTokenClassification.from_pretrained(base.files.folder, num_labels=5)
    config = LoraConfig(task_type="TOKEN_CLS", target_modules=["query", "dense"], layers_to_transform=layers)
    assert ours == adapted_layer_names(get_peft_model(plain, config))


def test_all_linear_respects_layers_to_transform(base):
    names = adapted_layer_names(create_peft_model(base, Lora(layers_to_transform=1), TASK))
    assert len(names) == 6
    assert all(".layer.1." in name for name in names)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers_to_transform": [1, 2, 7]}, "there is no layer 2. Layers of this base: 0 to 1."),
        ({"layers_to_transform": 7}, "there is no layer 7. Layers of this base: 0 to 1."),
        ({"layers_to_transform": []}, "none of the modules to adapt is in these layers."),
        (
            {"layers_to_transform": 0, "target_modules": ["1.attention.self.query"]},
            "none of the modules to adapt is in these layers. Name layers that contain the target_modules.",
        ),
    ],
)
def test_missing_layers_raise_recipe_error(base, fields, message):
    with pytest.raises(RecipeError) as error:
        create_peft_model(base, Lora(**fields), TASK)
    assert f"method.layers_to_transform: {message}" in str(error.value)


@pytest.mark.parametrize(
    ("kind", "field"), [("c3a", "block_size"), ("road", "group_size"), ("vblora", "vector_length")]
)
def test_default_block_size_divides_widths(base, kind, field):
    """PEFT's defaults, 64 and 256, do not divide layers 32 and 64 wide."""
    assert getattr(create_peft_model(base, PeftMethod(type=kind), TASK).peft_config["default"], field) == 32


def test_block_size_of_recipe_is_used(base):
    assert create_peft_model(base, PeftMethod(type="c3a", block_size=8), TASK).peft_config["default"].block_size == 8


def test_in_out_features_of_linear_and_conv1d():
    layers = torch.nn.ModuleDict({"plain": torch.nn.Linear(3, 5), "transposed": Conv1D(5, 3)})
    base = SimpleNamespace(model=layers)
    assert in_out_features(base, "plain") == in_out_features(base, "transposed") == (3, 5)


def test_head_method_trains_only_head(base):
    model = create_peft_model(base, Head(type="head"), TASK)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"base_model.model.classifier.modules_to_save.default.{name}" for name in ("weight", "bias")}
    assert not [name for name, _ in model.named_parameters() if "lora_" in name]


def test_head_method_for_language_model_raises_recipe_error(base):
    with pytest.raises(RecipeError, match=r"method.type: 'head' trains only a task's own head, .* Take lora"):
        create_peft_model(replace(base, head_modules=[]), Head(type="head"), TASK)


def test_registry_has_each_method_of_the_schema():
    kinds = get_args(get_args(MethodSection)[0])
    assert set(METHODS) == {name for kind in kinds for name in get_args(kind.model_fields["type"].annotation)}


def test_each_peft_type_is_supported_or_has_reason():
    ours = {"attention_prefix", "input_prompt"}  # what `prefix` and `prompt` are to PEFT
    taken = {name.replace("-", "_") for name in METHODS} | ours
    assert {kind.value.lower() for kind in PeftType} <= taken | UNSUPPORTED_PEFT_METHODS.keys()
    assert not UNSUPPORTED_PEFT_METHODS.keys() & METHODS.keys()


def test_ln_tuning_without_norms_raises_recipe_error(base, monkeypatch):
    monkeypatch.setattr("peftlab.methods.ln_tuning._is_norm", lambda module: False)
    with pytest.raises(RecipeError, match=r"method.type: no norm of this 'bert' has weights. Take lora or ia3."):
        create_peft_model(base, LnTuning(type="ln-tuning"), TASK)


@pytest.mark.parametrize(
    ("save_projection", "message"), [(True, "the adapter will take . MB, more than its base"), (False, "^$")]
)
def test_adapter_larger_than_base_is_warned(base, save_projection, message):
    section = PeftMethod(type="randlora", save_projection=save_projection, r=1)
    model = create_peft_model(base, section, TASK)
    assert re.search(message, size_warning(model, base, section))


def test_saved_bytes_match_file_size(base, tmp_path):
    model = create_peft_model(base, PeftMethod(type="vera", r=16), TASK)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    header = 20_000
    assert saved_bytes(model) < (tmp_path / "adapter_model.safetensors").stat().st_size < saved_bytes(model) + header


def test_full_has_no_size_warning(base):
    section = Full(type="full")
    assert size_warning(create_peft_model(base, section, TASK), base, section) == ""


SIMPLE = {"type", "variant", "r"}
"""Keys of the candidates that have the usual rate of their method."""


def best_measured_rate(method):
    """The best rate by validation at the first seed, a step lower where the next step up learnt nothing (0029)."""
    runs = load_runs("methods-politics", Outcome)
    place = LADDER.index(best_rate(runs, method))
    tried = {run.rate: run.validation for run in runs if (run.candidate, run.seed) == (method, 1)}
    learnt_nothing = any(tried.get(rate, 1) < 0.1 for rate in LADDER[place + 1 : place + 2])
    return LADDER[place - learnt_nothing]


@pytest.mark.parametrize("method", PEFT_METHODS)
def test_default_learning_rates_match_measurements(method):
    assert PeftMethod(type=method).default_learning_rate == best_measured_rate(method)


FULL = "full"
"""It keeps its usual rate although 3e-4 is a little better there: larger bases are known to break at it."""


@pytest.mark.parametrize("candidate", [name for name, known in CANDIDATES.items() if set(known.method) <= SIMPLE])
def test_few_rows_factors_match_measurements(candidate):
    section = parse_method(CANDIDATES[candidate].method)
    runs = load_runs("methods-politics", Outcome)
    tried = {run.rate: run.validation for run in runs if (run.candidate, run.seed) == (candidate, 1)}
    usual, best = section.default_learning_rate, best_rate(runs, candidate)
    gain = tried[best] - tried[usual]
    expected = best / usual if gain > 0.01 and candidate != FULL else 1
    assert section.few_rows_factor == pytest.approx(expected, rel=0.15)  # the rates of the grid are 3 and 3.3 apart


@pytest.mark.parametrize("method_type", ["bottleneck", "bitfit", "prefix", "prompt"])
def test_custom_tuners_raise_value_error_for_adapter_names(base, method_type):
    """PEFT would ignore `adapter_names` for these; rows of several adapters are mixed by a bank."""
    model = create_peft_model(base, parse_method({"type": method_type}), TASK)
    inputs = torch.randint(5, 40, (2, 9))
    with pytest.raises(ValueError, match=r"does not take `adapter_names`. peftlab.load\(…\) mixes rows"):
        model.eval()(input_ids=inputs, adapter_names=["default", "__base__"])
    assert model(input_ids=inputs).logits.shape[:2] == (2, 9)


@pytest.mark.parametrize("method_type", METHODS)
def test_record_describes_its_method(method_type):
    section, info = METHODS[method_type].section, method_info(method_type)
    assert section.__doc__.endswith(".")
    assert method_type in section_types(section)
    assert info.learning_rate > 0
    assert all(limits.key in section.model_fields for limits in info.limits)

"""LoRA's further fields, LoRA+ and AdaLoRA: what they do to layers, optimizer and steps."""

import pytest
import torch
import transformers
from peft import AdaLoraConfig, get_peft_model
from safetensors.torch import load_file

from peftlab.errors import RecipeError, TuningInterrupted
from peftlab.methods.adalora_training import STATE_FILE, average_rank, mean_orthogonality
from peftlab.recipe import read_recipe
from peftlab.tuning import Progress, tune
from peftlab.tuning.training_loop import _trainer
from tests.runs import Losses, prepared_run
from tests.task_stores import recipe_for
from tests.tuning.test_tune import ProgressRecorder

ADALORA = {"type": "adalora", "target_r": 2, "init_r": 6, "tinit": 1, "tfinal": 2}


@pytest.fixture
def recipe(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr("peftlab.tuning.run.FEW_VALIDATION_ROWS", 0)  # of epochs with equal scores the first is kept
    return recipe_for(tmp_path / "rows", tiny_base, "entities", training={"learning_rate": 1e-2, "num_train_epochs": 3})


def test_rank_and_alpha_patterns_set_layer_values(recipe):
    method = {"r": 4, "rank_pattern": {"query": 2}, "alpha_pattern": {"0.attention.self.value": 4}}
    layers = dict(prepared_run(recipe, {"method": method}).base.model.named_modules())
    for number in (0, 1):
        at = f"bert.encoder.layer.{number}.attention.self"
        assert layers[f"{at}.query"].lora_A["default"].weight.shape[0] == 2
        assert layers[f"{at}.key"].lora_A["default"].weight.shape[0] == 4
        assert layers[f"{at}.key"].scaling["default"] == 16 / 4
        assert layers[f"{at}.value"].scaling["default"] == (4 if number == 0 else 16) / 4


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {"rank_pattern": {"querry": 2}},
            "method.rank_pattern: 'querry' matches no adapted layer of this base. Did you",
        ),
        (
            {"target_modules": ["query"], "alpha_pattern": {"key": 2}},
            "method.alpha_pattern: 'key' matches no adapted layer",
        ),
        ({"rank_pattern": {"query": 0}}, "method.rank_pattern.query: should be greater than or equal to 1, not 0."),
        ({"init_lora_weights": "pissa"}, "unknown init_lora_weights 'pissa'"),
        ({"init_lora_weights": "orthogonal", "r": 3}, "requires the LoRA rank to be even"),
        ({"loraplus_lr_ratio": 0.5}, "method.loraplus_lr_ratio: should be greater than or equal to 1, not 0.5."),
        ({**ADALORA, "init_r": 1}, "method.init_r: should be at least target_r, not 1."),
    ],
)
def test_wrong_lora_fields_raise_recipe_error(recipe, method, message):
    with pytest.raises(RecipeError) as error:
        prepared_run(recipe, {"method": method})
    assert message in str(error.value)


def test_adalora_with_sharding_raises_recipe_error(recipe):
    with pytest.raises(RecipeError, match="'adalora' compares directions of full layers"):
        read_recipe(recipe, {"method": ADALORA, "training.distributed": "fsdp"})


@pytest.mark.parametrize("kind", ["gaussian", "orthogonal"])
def test_initial_lora_update_is_zero(recipe, kind):
    plain = prepared_run(recipe).model.state_dict()
    run = prepared_run(recipe, {"method.init_lora_weights": kind})
    name = "base_model.model.bert.encoder.layer.0.output.dense.lora_A.default.weight"
    assert not torch.equal(run.model.state_dict()[name], plain[name])
    layer = run.base.model.bert.encoder.layer[0].output.dense
    torch.testing.assert_close(layer.get_delta_weight("default"), torch.zeros_like(layer.weight), rtol=0, atol=1e-6)


def test_loraplus_sets_learning_rate_of_b(recipe, tmp_path):
    run = prepared_run(recipe, {"method.loraplus_lr_ratio": 16.0, "training.weight_decay": 0.1})
    optimizer = _trainer(run, tmp_path, Progress()).create_optimizer()
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    trained = {name: parameter for name, parameter in run.model.named_parameters() if parameter.requires_grad}
    assert len(rates) == len(trained)
    for name, parameter in trained.items():
        rate = 0.16 if "lora_B" in name or parameter.ndim == 1 else 0.01
        assert rates[id(parameter)] == (pytest.approx(rate), 0.0 if parameter.ndim == 1 else 0.1)


def test_adalora_reaches_target_rank(recipe, tmp_path):
    changes = {"method": ADALORA, "training.num_train_epochs": 1, "training.per_device_train_batch_size": 2}
    result = tune(recipe, overrides=changes, store=tmp_path / "store")
    weights = load_file(result.adapter.folder / "adapter_model.safetensors")
    kept = [int(tensor.count_nonzero()) for name, tensor in weights.items() if "lora_E" in name]
    assert sum(kept) == 2 * len(kept)
    assert max(kept) > min(kept)  # by need, not the same for all


def test_adalora_allocates_once_per_step(recipe, tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr("peft.AdaLoraModel.update_and_allocate", lambda self, step: steps.append(step))
    with pytest.raises(TuningInterrupted):
        tune(recipe, overrides={"method": ADALORA}, store=tmp_path / "store", progress=ProgressRecorder(interrupt_at=4))
    assert steps == [1, 2, 3, 4]


def test_resumed_adalora_run_yields_equal_adapter(recipe, tmp_path):
    changes = {"method": ADALORA}
    straight = tune(recipe, overrides=changes, store=tmp_path / "straight")
    with pytest.raises(TuningInterrupted):
        tune(recipe, overrides=changes, store=tmp_path / "store", progress=ProgressRecorder(interrupt_at=4))
    resumed = tune(recipe, overrides=changes, store=tmp_path / "store", resume=True)
    one, other = (load_file(result.adapter.folder / "adapter_model.safetensors") for result in (straight, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_missing_adalora_state_is_warned_on_resume(recipe, tmp_path):
    changes, heard = {"method": ADALORA}, Losses()
    with pytest.raises(TuningInterrupted):
        tune(recipe, overrides=changes, store=tmp_path / "store", progress=ProgressRecorder(interrupt_at=4))
    for file in (tmp_path / "store").rglob(STATE_FILE):
        file.unlink()
    tune(recipe, overrides=changes, store=tmp_path / "store", resume=True, progress=heard)
    assert [
        warning
        for warning in heard.warnings
        if "is missing: the importance of directions is estimated again" in warning
    ]


def test_adalora_warns_if_best_epoch_has_full_rank(recipe, tmp_path):
    heard = Losses()
    changes = {"method": ADALORA, "training.learning_rate": 1e-9}  # no epoch is better than the first
    tune(recipe, overrides=changes, store=tmp_path / "store", progress=heard)
    assert [warning for warning in heard.warnings if "the best epoch came before ranks were reduced" in warning]


def test_adalora_schedule_longer_than_run_raises_recipe_error(recipe, tmp_path):
    changes = {"method": {**ADALORA, "tinit": 100}}
    with pytest.raises(
        RecipeError, match=r"ranks are reduced after step 100 \(tinit\) and before the last 2 \(tfinal\) of only"
    ):
        tune(recipe, overrides=changes, store=tmp_path / "store")


def test_orthogonality_loss_matches_peft():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    base = transformers.BertForSequenceClassification(config)
    adalora = AdaLoraConfig(task_type="SEQ_CLS", total_step=10, target_modules=["query", "output.dense"])
    model = get_peft_model(base, adalora).eval()
    ids, labels = torch.randint(0, 50, (4, 6)), torch.tensor([0, 1, 1, 0])
    with torch.no_grad():
        whole = model(input_ids=ids, labels=labels).loss
        bare = torch.nn.functional.cross_entropy(model(input_ids=ids).logits, labels)
        torch.testing.assert_close(whole, bare + 0.5 * mean_orthogonality(model))
    assert average_rank(model) == 0  # Λ begins as 0

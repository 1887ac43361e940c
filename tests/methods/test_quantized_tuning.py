"""Methods whose layers derive from LoRA's are tuned and published on quantized bases, not only computed there."""

import pytest

import peftlab
from peftlab.tuning.fast.lora import _can_fuse
from tests.architectures import build
from tests.language_models import build_language_model, instruction_recipe
from tests.runs import prepared_run
from tests.task_stores import recipe_for

ADALORA = {"type": "adalora", "target_r": 2, "init_r": 4}


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
@pytest.mark.parametrize("base", ["bert", "roberta", "llama"])
def test_adalora_is_published_on_quantized_base(tmp_path, base, quantization):
    folder = build(base, tmp_path / "base")
    recipe = recipe_for(tmp_path / "rows", folder, "classes", training={"num_train_epochs": 6})
    changes = {"method": ADALORA, "base.quantization": quantization}
    result = peftlab.tune(recipe, overrides=changes, store=tmp_path / "store", device="cpu")
    assert result.adapter.manifest.base.quantization == quantization
    name = result.adapter.name
    bank = peftlab.load(name, store=tmp_path / "store", device="cpu")
    again = peftlab.load(name, store=tmp_path / "store", device="cpu")
    texts = ["Ada left Rome .", "Nobody came ."]
    assert bank.predict(texts) == again.predict(texts)


@pytest.mark.parametrize("quantization", [None, "8bit", "4bit"])
@pytest.mark.parametrize(
    "method", [ADALORA, {"type": "lora", "r": 4}, {"type": "lora", "use_dora": True}, {"type": "ia3"}]
)
def test_only_layers_of_lora_itself_are_fused(tmp_path, method, quantization):
    if method.get("use_dora") and quantization == "8bit":
        pytest.skip("is refused")
    base = build_language_model(tmp_path / "base", hidden_size=64)
    recipe = instruction_recipe(tmp_path / "rows", base)
    run = prepared_run(recipe, {"method": method, "base.quantization": quantization})
    is_plain = method == {"type": "lora", "r": 4}
    layers = [module for module in run.model.modules() if hasattr(module, "get_base_layer")]
    assert layers
    assert all(_can_fuse(module) == is_plain for module in layers)

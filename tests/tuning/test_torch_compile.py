"""Steps through torch.compile match plain steps, and a model that cannot be compiled is an error."""

import pytest
import torch
import transformers

import peftlab
from peftlab.errors import RecipeError
from peftlab.recipe import read_recipe
from peftlab.tuning.fast import compilation
from peftlab.tuning.fast.compilation import compiled_layers
from tests.architectures import build
from tests.conftest import build_tiny_bert
from tests.runs import Losses
from tests.task_stores import recipe_for
from tests.tuning.test_fast_steps import assert_same, batch, encoder_with_decoder, step, with_lora

COMPILED = {"training.torch_compile": True}


@pytest.fixture
def traced(monkeypatch):
    """Trace graphs and run them without compiled kernels, which would take minutes. Counts the runs."""
    runs = []

    def backend(graph, inputs):
        return lambda *given: (runs.append(1), graph.forward(*given))[1]

    torch.compiler.reset()
    monkeypatch.setattr(compilation, "OPTIONS", {**compilation.OPTIONS, "backend": backend})
    return runs


@pytest.mark.parametrize("name", ["bert", "deberta-v2", "modernbert"])
def test_compiled_layers_match_eager(tmp_path, traced, name):
    folder = build(name, tmp_path)
    model = with_lora(transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)).eval()
    plain = step(model, batch())
    with compiled_layers(model, batch()) as layers:
        assert layers == 2
        assert_same(plain, step(model, batch()), rtol=1e-4, atol=1e-5)
        longer = batch(rows=3, tokens=17)
        assert torch.isfinite(step(model, longer)[0]).all()
    assert traced
    assert not any("forward" in vars(module) for module in model.modules())


def test_encoder_and_decoder_are_compiled(traced):
    model, inputs = encoder_with_decoder()
    plain = step(model, inputs)
    with compiled_layers(model, inputs) as layers:
        assert layers == 4
        assert_same(plain, step(model, inputs), rtol=1e-4, atol=1e-4)


def test_predictions_are_not_compiled(tmp_path, traced):
    model = with_lora(transformers.AutoModelForSequenceClassification.from_pretrained(build("bert", tmp_path))).eval()
    expected = model(**batch()).logits
    with compiled_layers(model, batch()), torch.inference_mode():
        traced.clear()
        assert torch.equal(model(**batch()).logits, expected)
    assert not traced


def test_inductor_matches_eager(tiny_encoder):
    """Compiles the kernels of one layer, because each layer takes seconds."""
    model = with_lora(transformers.AutoModelForSequenceClassification.from_pretrained(tiny_encoder)).eval()
    plain = step(model, batch())
    torch.compiler.reset()
    with compiled_layers(model, batch()) as layers:
        assert layers == 1
        assert_same(plain, step(model, batch()), rtol=1e-4, atol=1e-5)


@pytest.fixture
def tiny_encoder(tmp_path):
    return build_tiny_bert(tmp_path / "one-layer", layers=1)


@pytest.mark.parametrize("method", ["bottleneck", "last-layers"])
def test_compiled_run_matches_fused_run(tmp_path, tiny_base, traced, method):
    recipe = recipe_for(tmp_path, tiny_base, "classes")
    common = {"training.base_dropout": False, "training.bf16": False, "method": {"type": method}}
    output = {}
    for name, way in {"ours": {}, "compiled": COMPILED}.items():
        output[name] = Losses()
        again = {"training.gradient_checkpointing": method == "bottleneck"}
        peftlab.tune(recipe, overrides=common | way | again, store=tmp_path / name, progress=output[name])
    assert traced
    assert output["compiled"].losses == pytest.approx(output["ours"].losses, rel=1e-3)


def test_compile_failure_raises_recipe_error(tmp_path, tiny_base, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no C++ compiler was found")

    torch.compiler.reset()
    monkeypatch.setattr(compilation, "OPTIONS", {"backend": broken})
    with pytest.raises(RecipeError, match=r"(?s)training.torch_compile: torch.compile cannot compile .*no C\+\+"):
        peftlab.tune(recipe_for(tmp_path, tiny_base, "classes"), overrides=COMPILED, store=tmp_path / "store")
    assert not (tmp_path / "store").exists() or not list((tmp_path / "store").glob("*/1"))


def test_torch_compile_conflicts_with_fused_lora_and_sharding(tmp_path, tiny_base):
    recipe = recipe_for(tmp_path, tiny_base, "classes")
    with pytest.raises(RecipeError, match="compiles PEFT's layers and would bypass the fused function"):
        read_recipe(recipe, COMPILED | {"training.fused_lora": True})
    with pytest.raises(RecipeError, match=r"fsdp shards layers that torch\.compile has compiled as a whole"):
        read_recipe(recipe, COMPILED | {"training.distributed": "fsdp"})

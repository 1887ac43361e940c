"""Bottleneck adapters: the papers' equations, PEFT's whole life cycle, and mixed batches."""

import subprocess
import sys

import pytest
import torch
import transformers
from peft import PeftModel, PeftType, get_peft_model
from torch.nn import functional

from peftlab.methods.architectures import ARCHITECTURES
from peftlab.methods.bottleneck import DEFAULTS
from peftlab.methods.tuners.bottleneck import ACTIVATIONS, BottleneckConfig, BottleneckLayer

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VARIANTS = list(DEFAULTS)
INPUTS = torch.tensor([[2, 7, 9, 11, 3], [2, 8, 6, 5, 3], [2, 9, 9, 4, 3]])


def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=40, attn_implementation="eager", **SIZES)
    return transformers.BertForSequenceClassification(config).double().eval()


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=40, **SIZES)
    return transformers.LlamaForCausalLM(config).double().eval()


def config_for(model, variant, **changes):
    defaults = DEFAULTS[variant]
    names = [name for name, _ in model.named_modules()]
    targets, form = ARCHITECTURES[model.config.model_type].bottleneck_targets(variant, names)
    fields = {
        "variant": variant, "form": form, "hidden_size": 16, "bottleneck_size": 4, "activation": defaults.activation,
        "scaling": defaults.scaling, "init": defaults.init, "target_modules": targets,
    }  # fmt: skip
    return BottleneckConfig(**{**fields, **changes})


def make_peft_model(model, variant, seed=1, **changes):
    return randomize_weights(get_peft_model(model, config_for(model, variant, **changes)), seed)


def randomize_weights(model, seed, name="default"):
    torch.manual_seed(seed)
    for layer in layers_of(model):
        for part in (layer.bottleneck_down[name], layer.bottleneck_up[name]):
            torch.nn.init.normal_(part.weight, std=0.5)
            torch.nn.init.normal_(part.bias, std=0.5)
    return model.double().eval()


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, BottleneckLayer)]


def reference(layer, variant, name="default"):
    """A(h) by the paper's equation, from the layer's weights."""
    down, up = layer.bottleneck_down[name], layer.bottleneck_up[name]
    activation, scaling = ACTIVATIONS[DEFAULTS[variant].activation], DEFAULTS[variant].scaling
    return lambda h: scaling * (activation(h @ down.weight.T + down.bias) @ up.weight.T + up.bias)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bottleneck_in_bert_matches_paper_equations(variant):
    model = make_peft_model(bert(), variant)
    bottlenecks = iter(reference(layer, variant) for layer in layers_of(model))
    core = model.base_model.model.bert
    h = core.embeddings(INPUTS)
    with torch.no_grad():
        for layer in core.encoder.layer:
            plain = {name: unwrapped(module) for name, module in layer.named_modules()}
            first = next(bottlenecks) if variant == "houlsby" else lambda h: 0
            second = next(bottlenecks)
            o = plain["attention.output.dense"](plain["attention.self"](h)[0])
            x = plain["attention.output.LayerNorm"](o + first(o) + h)
            output = unwrapped(layer.output)
            norm = unwrapped(output.LayerNorm)
            f = unwrapped(output.dense)(functional.gelu(plain["intermediate.dense"](x)))
            match variant:
                case "houlsby":
                    h = norm(f + second(f) + x)
                case "pfeiffer":
                    h = norm(f + x + second(norm(f + x)))
                case "parallel":
                    h = norm(f + x + second(x))
        assert next(bottlenecks, None) is None
        assert torch.allclose(core(INPUTS).last_hidden_state, h, atol=1e-6, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bottleneck_in_llama_is_added_before_residual(variant):
    model = make_peft_model(llama(), variant)
    bottlenecks = iter(reference(layer, variant) for layer in layers_of(model))
    core = model.base_model.model.model
    h = core.embed_tokens(INPUTS)
    places = core.rotary_emb(h, torch.arange(INPUTS.shape[1])[None])
    mask = torch.full((5, 5), -1e9, dtype=torch.double).triu(1)[None, None]
    with torch.no_grad():
        for layer in core.layers:
            ends = layer.self_attn.o_proj, unwrapped(layer.mlp).down_proj
            first = next(bottlenecks) if variant == "houlsby" else lambda h: 0
            second = next(bottlenecks)
            o = attention_of(layer, unwrapped(ends[0]), places, mask, layer.input_layernorm(h))
            h = h + o + first(o)
            n = layer.post_attention_layernorm(h)
            mlp = unwrapped(layer.mlp)
            f = unwrapped(ends[1])(functional.silu(mlp.gate_proj(n)) * mlp.up_proj(n))
            h = h + f + second(n if variant == "parallel" else f)
        assert torch.allclose(core(INPUTS).last_hidden_state, core.norm(h), atol=1e-6, rtol=0)


def attention_of(layer, end, places, mask, x):
    """Causal attention by hand, with rotary positions."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    attention = layer.self_attn
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    q, k, v = (project(x).view(*x.shape[:2], 2, 8).transpose(1, 2) for project in projections)
    q, k = apply_rotary_pos_emb(q, k, *places)
    weights = (q @ k.transpose(2, 3) / 8**0.5 + mask).softmax(-1)
    return end((weights @ v).transpose(1, 2).reshape(x.shape))


def unwrapped(module):
    return module.get_base_layer() if isinstance(module, BottleneckLayer) else module


@pytest.mark.parametrize("variant", VARIANTS)
def test_bottleneck_initialization_is_near_identity(variant):
    model = bert()
    plain = model(INPUTS).logits
    fresh = get_peft_model(model, config_for(model, variant)).double().eval()
    difference = (fresh(INPUTS).logits - plain).abs().max()
    assert difference < 0.05 * plain.abs().max()
    assert (difference == 0) == (variant == "parallel")


@pytest.mark.parametrize("make", [bert, llama])
@pytest.mark.parametrize("variant", VARIANTS)
def test_add_set_disable_save_load_delete(make, variant, tmp_path):
    model = make_peft_model(make(), variant)
    one = model(INPUTS).logits
    model.add_adapter("other", config_for(make(), variant))
    randomize_weights(model, 2, "other")
    assert torch.equal(model(INPUTS).logits, one)
    model.set_adapter("other")
    two = model.eval()(INPUTS).logits
    assert not torch.allclose(one, two)
    with model.disable_adapter():
        assert torch.equal(model(INPUTS).logits, make()(INPUTS).logits)
    model.save_pretrained(tmp_path)
    for options in ({}, {"low_cpu_mem_usage": True}):
        again = PeftModel.from_pretrained(make(), tmp_path, autocast_adapter_dtype=False, **options)
        again.load_adapter(tmp_path / "other", "other", autocast_adapter_dtype=False, **options)
        assert torch.equal(again.eval()(INPUTS).logits, one)
        again.set_adapter("other")
        assert torch.equal(again.eval()(INPUTS).logits, two)
        again.delete_adapter("default")
        assert torch.equal(again(INPUTS).logits, two)
        assert again.peft_config["other"].peft_type == PeftType("BOTTLENECK")


def test_bottleneck_unloads_and_merge_raises_value_error():
    model = make_peft_model(bert(), "houlsby")
    with pytest.raises(ValueError, match="a bottleneck is not linear"):
        model.merge_and_unload()
    with pytest.raises(ValueError, match="not linear"):
        model.merge_adapter()
    assert torch.equal(model.unload()(INPUTS).logits, bert()(INPUTS).logits)


def test_adapters_of_different_form_raise_value_error():
    model = make_peft_model(bert(), "pfeiffer")
    with pytest.raises(ValueError, match="adapter 'other' has form 'after', the others here have 'around-norm'"):
        model.add_adapter("other", config_for(bert(), "pfeiffer", form="after"))


def test_plain_peft_loads_config_after_import(tmp_path):
    make_peft_model(bert(), "pfeiffer").save_pretrained(tmp_path)
    code = f"from peft import PeftConfig; print(PeftConfig.from_pretrained({str(tmp_path)!r}).variant)"
    without = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert without.returncode
    assert "BOTTLENECK" in without.stderr
    done = subprocess.run([sys.executable, "-c", f"import peftlab.methods; {code}"], capture_output=True, text=True)
    assert done.stdout.strip() == "pfeiffer", done.stderr

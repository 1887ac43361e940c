"""Prefixes inside attention: the equation on each architecture's own queries and keys, and PEFT's life cycle."""

import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers
from peft import PeftModel, PeftType, PrefixTuningConfig, get_peft_model
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from peftlab.errors import RecipeError
from peftlab.methods.architectures import ARCHITECTURES
from peftlab.methods.prefix import prefix_config
from peftlab.methods.tuners import prefix_attention
from peftlab.methods.tuners.prefix import PrefixConfig, PrefixLayer
from peftlab.methods.tuners.prefix_attention import key_widths
from peftlab.recipe import Prefix
from peftlab.tuning.fast.attention import short_sequence_attention
from tests.architectures import build
from tests.runs import prepared_run
from tests.task_stores import recipe_for

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
ROTARY = {**SIZES, "vocab_size": 40, "pad_token_id": 0}
T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 6, "d_ff": 32, "num_layers": 2, "num_heads": 2, "pad_token_id": 0}
BART = {
    "vocab_size": 40, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
}  # fmt: skip
DEBERTA = {
    "vocab_size": 40, "relative_attention": True, "position_buckets": 4, "norm_rel_ebd": "layer_norm",
    "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0,
    **SIZES,
}  # fmt: skip
KINDS = {
    "bert": {"vocab_size": 40, **SIZES},
    "roberta": {"vocab_size": 40, "pad_token_id": 0, **SIZES},
    "electra": {"vocab_size": 40, "embedding_size": 8, **SIZES},
    "distilbert": {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "modernbert": {**ROTARY, "local_attention": 4, "global_attn_every_n_layers": 2, "cls_token_id": 2},
    "llama": ROTARY,
    "mistral": {**ROTARY, "sliding_window": 4, "num_key_value_heads": 1},
    "qwen2": {**ROTARY, "num_key_value_heads": 1},
    "qwen3": {**ROTARY, "num_key_value_heads": 1, "head_dim": 12},
    "gpt2": {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "t5": T5,
    "bart": BART,
}
INPUTS = torch.tensor([[2, 7, 9, 11, 3, 8, 12, 6, 3], [2, 8, 6, 5, 3, 0, 0, 0, 0]])
MASK = (INPUTS != 0).long()
WITH_CACHES = ["llama", "qwen2", "gpt2"]


def base_of(kind, attention=None, auto=transformers.AutoModel):
    torch.manual_seed(0)
    settings = {**KINDS, "deberta-v2": DEBERTA}[kind]
    if kind == "modernbert":
        settings = {**settings, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
    config = transformers.AutoConfig.for_model(kind, **settings)
    model = auto.from_config(config, attn_implementation=attention).double().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 8  # far from uniform attention
    return model


def inputs_for(model, mask=MASK):
    more = {"decoder_input_ids": INPUTS[:, :5]} if model.config.is_encoder_decoder else {}
    return {"input_ids": INPUTS, "attention_mask": mask, **more}


def config_for(model, **changes):
    names = [name for name, _ in model.named_modules()]
    targets, form = ARCHITECTURES[model.config.model_type].prefix_targets(names)
    (width,) = set(key_widths(model, targets, form).values())
    fields = {"form": form, "num_virtual_tokens": 3, "width": width, "encoder_hidden_size": 8}
    return PrefixConfig(**{**fields, "target_modules": targets, **changes})


def make_peft_model(model, seed=1, **changes):
    torch.manual_seed(seed)
    return randomize_weights(get_peft_model(model, config_for(model, **changes)), seed)


def randomize_weights(model, seed, name="default"):
    torch.manual_seed(seed)
    for layer in layers_of(model):
        torch.nn.init.normal_(layer.attention_prefix_encoder[name].embedding.weight)
    return model.double().eval()


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, PrefixLayer)]


def states_of(output):
    return output.last_hidden_state if hasattr(output, "last_hidden_state") else output.logits


@pytest.fixture
def reference():
    """Bases whose attention is computed by the equation alone, with keys and values by module."""
    prefixes = {}

    def attend(module, query, key, value, mask, scaling=None, position_bias=None, **kwargs):
        groups = query.shape[1] // key.shape[1]
        scores = query @ key.repeat_interleave(groups, 1).mT * scaling
        scores = scores + (0 if position_bias is None else position_bias) + (0 if mask is None else mask)
        value = value.repeat_interleave(groups, 1)
        if module in prefixes:
            first, second = (part.view(-1, *key.shape[1::2]).transpose(0, 1) for part in prefixes[module])
            first, second = (part.repeat_interleave(groups, 0).expand(len(key), -1, -1, -1) for part in (first, second))
            scores, value = torch.cat([query @ first.mT * scaling, scores], -1), torch.cat([second, value], 2)
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    AttentionInterface.register("by_the_equation", attend)
    AttentionMaskInterface.register("by_the_equation", eager_mask)
    return prefixes


@pytest.mark.parametrize("mask", [MASK, None], ids=["padded", "no-mask"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
def test_prefix_matches_paper_equation(reference, kind, attention, mask):
    model = make_peft_model(base_of(kind, attention))
    plain = base_of(kind, "by_the_equation")
    names = config_for(base_of(kind)).target_modules
    assert len(layers_of(model)) == len(names) == (4 if plain.config.is_encoder_decoder else 2)
    for name, layer in zip(names, layers_of(model), strict=True):
        made = layer.attention_prefix_encoder["default"].embedding.weight.detach()
        reference[plain.get_submodule(name)] = made.chunk(2, dim=1)
    with torch.no_grad():
        expected = states_of(plain(**inputs_for(plain, mask)))
        found = states_of(model(**inputs_for(plain, mask)))
    seen = MASK.bool() if mask is not None and not plain.config.is_encoder_decoder else slice(None)
    tolerance = 2e-6 if attention == "eager" else 1e-9  # some eager functions have their softmax in fp32
    torch.testing.assert_close(found[seen], expected[seen], rtol=0, atol=tolerance)


def test_prefix_changes_encoder_and_decoder():
    for kind in ("t5", "bart"):
        model = make_peft_model(base_of(kind))
        encoder = model.get_base_model().get_encoder()
        with torch.no_grad():
            assert not torch.allclose(states_of(encoder(INPUTS)), states_of(base_of(kind).get_encoder()(INPUTS)))


def test_prefix_in_deberta_has_no_position():
    model, plain = make_peft_model(base_of("deberta-v2", "eager")), base_of("deberta-v2", "eager")
    prefixes = [layer.attention_prefix_encoder["default"].embedding.weight.detach() for layer in layers_of(model)]

    def prefix_equation(module, prefix):
        def forward(states, mask, output_attentions=False, query_states=None, relative_pos=None, rel_embeddings=None):
            q, k, v = (
                module.transpose_for_scores(project(states), 2)
                for project in (module.query_proj, module.key_proj, module.value_proj)
            )
            first, second = (part.view(-1, 2, 8).transpose(0, 1).repeat(2, 1, 1) for part in prefix.chunk(2, dim=1))
            bias = module.disentangled_attention_bias(q, k, relative_pos, rel_embeddings, 3)
            own = (q @ k.mT / math.sqrt(3 * 8) + bias).view(2, 2, *bias.shape[1:])
            own = own.masked_fill(~mask.bool(), torch.finfo(own.dtype).min).view_as(bias)
            weights = torch.cat([q @ first.mT / math.sqrt(3 * 8), own], -1).softmax(-1)
            return (weights @ torch.cat([second, v], 1)).view(2, 2, -1, 8).transpose(1, 2).flatten(2), None

        return forward

    for layer, prefix in zip(plain.encoder.layer, prefixes, strict=True):
        layer.attention.self.forward = prefix_equation(layer.attention.self, prefix)
    with torch.no_grad():
        expected, found = (states_of(m(**inputs_for(plain)))[MASK.bool()] for m in (plain, model))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)  # its square root is in fp32


@pytest.mark.parametrize("kind", ["llama", "qwen2", "bert"])
def test_prefix_matches_peft_except_positions(kind):
    """PEFT's prefix is a cache of past keys; with it the base gets positions that begin at 0, as here."""
    auto = transformers.AutoModelForTokenClassification if kind == "bert" else transformers.AutoModelForCausalLM
    base, task = base_of(kind, auto=auto), "TOKEN_CLS" if kind == "bert" else "CAUSAL_LM"
    mine = make_peft_model(base_of(kind, auto=auto), num_virtual_tokens=4)
    heads = 1 if kind == "qwen2" else 2
    shape = {"num_layers": 2, "token_dim": 8 * heads, "num_attention_heads": heads}
    theirs = get_peft_model(base, PrefixTuningConfig(task_type=task, num_virtual_tokens=4, **shape)).double().eval()
    both = [layer.attention_prefix_encoder["default"].embedding.weight.data for layer in layers_of(mine)]
    theirs.prompt_encoder["default"].embedding.weight.data = torch.cat(both, dim=1)
    inputs = {"input_ids": INPUTS[:1], "position_ids": torch.arange(9)[None]}
    if kind == "bert":  # PEFT drops position ids, so their table is moved instead
        positions = base.bert.embeddings.position_embeddings.weight.data
        positions[4:] = positions[:-4].clone()
    with torch.no_grad():
        one = mine(**inputs).logits
        cache = None if kind == "bert" else theirs.get_prompt(1)
        other = theirs(INPUTS[:1], MASK[:1]).logits if cache is None else base(**inputs, past_key_values=cache).logits
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", WITH_CACHES)
def test_prefix_generation_with_cache_matches_full_forward(kind):
    model = make_peft_model(base_of(kind, auto=transformers.AutoModelForCausalLM))
    with torch.no_grad():
        whole = model(input_ids=INPUTS[:1]).logits
        start = model(input_ids=INPUTS[:1, :4], use_cache=True)
        steps, cache = [start.logits], start.past_key_values
        assert cache.get_seq_length() == 4
        for i in range(4, INPUTS.shape[1]):
            steps.append(model(input_ids=INPUTS[:1, i : i + 1], past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("kind", ["bert", "llama", "deberta-v2"])
def test_add_set_disable_save_load_delete_unload(kind, projected, tmp_path):
    model = make_peft_model(base_of(kind), prefix_projection=projected)
    one = states_of(model(**inputs_for(model)))
    model.add_adapter("other", config_for(base_of(kind), prefix_projection=projected))
    randomize_weights(model, 2, "other")
    assert torch.equal(states_of(model(**inputs_for(model))), one)
    model.set_adapter("other")
    two = states_of(model.eval()(**inputs_for(model)))
    assert not torch.allclose(one, two)
    with model.disable_adapter():
        assert torch.equal(states_of(model(**inputs_for(model))), states_of(base_of(kind)(**inputs_for(model))))
    model.save_pretrained(tmp_path)
    for options in ({}, {"low_cpu_mem_usage": True}):
        again = PeftModel.from_pretrained(base_of(kind), tmp_path, autocast_adapter_dtype=False, **options)
        again.load_adapter(tmp_path / "other", "other", autocast_adapter_dtype=False, **options)
        assert torch.equal(states_of(again.eval()(**inputs_for(model))), one)
        again.set_adapter("other")
        assert torch.equal(states_of(again.eval()(**inputs_for(model))), two)
        again.delete_adapter("default")
        assert torch.equal(states_of(again(**inputs_for(model))), two)
        assert again.peft_config["other"].peft_type == PeftType("ATTENTION_PREFIX")
    with pytest.raises(ValueError, match="a prefix cannot be expressed as a change of a weight"):
        model.merge_and_unload()
    unloaded = model.unload()
    assert torch.equal(states_of(unloaded(**inputs_for(model))), states_of(base_of(kind)(**inputs_for(model))))
    assert {name for name, _ in unloaded.named_parameters()} == {name for name, _ in base_of(kind).named_parameters()}


@pytest.mark.parametrize("projected", [False, True])
def test_reloaded_prefix_continues_training(projected, tmp_path):
    model = make_peft_model(base_of("bert"), prefix_projection=projected)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base_of("bert"), tmp_path, is_trainable=True, autocast_adapter_dtype=False)
    for one in (model, again):
        step(one.eval())
    weights, others = (dict(m.named_parameters()) for m in (model, again))
    assert {name for name, p in others.items() if p.requires_grad} == {n for n, p in weights.items() if p.requires_grad}
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def step(model):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    states_of(model(**inputs_for(model))).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "modernbert", "llama", "t5"])
def test_gradient_checkpointing_yields_equal_gradients(kind):
    gradients = []
    for checkpointing in (False, True):
        model = make_peft_model(base_of(kind), prefix_projection=True)
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(3)
        states_of(model.train()(**inputs_for(model), use_cache=False)).square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(a.abs().max() > 0 for a in gradients[0])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["bert", "modernbert", "qwen2", "t5"])
def test_short_attention_yields_equal_gradients(kind):
    gradients = []
    for short in (False, True):
        model = make_peft_model(base_of(kind).float()).float()
        with short_sequence_attention(model.get_base_model(), None) if short else torch.enable_grad():
            states_of(model(**inputs_for(model))).square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, other in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, other, rtol=1e-4, atol=1e-6)


def test_prefix_needs_no_input_tokens():
    """64 positions, 64 tokens, 40 virtual ones: PEFT's own fails at one."""
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=64, **SIZES)
    model = make_peft_model(transformers.BertModel(config).double(), num_virtual_tokens=40)
    assert states_of(model(torch.randint(5, 40, (2, 64)))).shape == (2, 64, 16)


def test_output_attentions_include_prefix():
    model = make_peft_model(base_of("bert", "eager"))
    output = model(**inputs_for(model), output_attentions=True, output_hidden_states=True)
    assert [a.shape[2:] for a in output.attentions] == [(9, 12)] * 2
    assert [states.shape[1] for states in output.hidden_states] == [9] * 3


def test_plain_peft_loads_config_after_import(tmp_path):
    make_peft_model(base_of("bert")).save_pretrained(tmp_path)
    code = f"from peft import PeftConfig; print(PeftConfig.from_pretrained({str(tmp_path)!r}).num_virtual_tokens)"
    without = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ATTENTION_PREFIX" in without.stderr
    done = subprocess.run([sys.executable, "-c", f"import peftlab.methods; {code}"], capture_output=True, text=True)
    assert done.stdout.strip() == "3", done.stderr


@pytest.fixture
def prepared(tmp_path):
    def prepared(kind="bert", method=None, **changes):
        folder = build(kind, tmp_path / kind)
        recipe = recipe_for(tmp_path / "data", folder, "classes", training={"bf16": True, "num_train_epochs": 2})
        return prepared_run(recipe, {"method": {"type": "prefix", **(method or {})}, **changes})

    return prepared


def test_wrong_prefix_section_raises_recipe_error(prepared):
    wrong = {
        "there is no layer 5. Layers of this base: 0 to 1.": {"layers_to_transform": [5]},
        "'self_attn' matches no module of this base.": {"target_modules": ["self_attn"]},
        "'bert.encoder.layer.0.output' does not use Transformers' attention interface.": {
            "target_modules": ["0.output"]
        },
        "method.encoder_hidden_size: should come with prefix_projection: true": {"encoder_hidden_size": 4},
    }
    for message, method in wrong.items():
        with pytest.raises(RecipeError) as error:
            prepared(method=method)
        assert message in str(error.value)


def test_position_based_kernel_raises_recipe_error(prepared):
    with pytest.raises(
        RecipeError, match=r"base.attn_implementation: prefixes do not work with 'flex_attention', .* Take eager"
    ):
        prepared(**{"base.attn_implementation": "flex_attention"})
    model = make_peft_model(base_of("bert"))
    model.get_base_model().config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(
        ValueError, match="prefixes do not work with the attention function 'flash_attention_2'; take eager"
    ):
        model.get_base_model().encoder.layer[0].attention.self(torch.zeros(1, 2, 16, dtype=torch.double))


def test_prefix_in_unsupported_architecture_raises_recipe_error(prepared, monkeypatch):
    nowhere = {"bert": replace(ARCHITECTURES["bert"], self_attention=None)}
    monkeypatch.setattr("peftlab.methods.prefix.ARCHITECTURES", nowhere)
    with pytest.raises(RecipeError, match=r"prefixes are impossible in 'bert', .* Take lora, ia3 or prompt"):
        prepared()
    assert not ARCHITECTURES["deberta"].prefix_targets(["encoder.layer.0.attention.self"])[0]


def test_unknown_architecture_requires_target_modules(prepared, monkeypatch):
    monkeypatch.setattr("peftlab.methods.prefix.ARCHITECTURES", {"gpt2": None})
    with pytest.raises(RecipeError, match=r"does not know the self-attention modules of 'bert'. Name them, as in"):
        prepared()
    run = prepared(method={"target_modules": ["attention.self"]})
    assert len(layers_of(run.model)) == 2


def test_unequal_key_widths_raise_recipe_error(prepared, monkeypatch):
    monkeypatch.setattr("peftlab.methods.prefix.key_widths", lambda model, names, form: {names[0]: 8, names[1]: 4})
    with pytest.raises(
        RecipeError, match=r"the keys are not equally wide in all layers: .* Choose layers of the same width"
    ):
        prepared()


def test_unsupported_prefix_call_raises_value_error():
    model = make_peft_model(base_of("bert"), width=12)
    with pytest.raises(ValueError, match="a prefix of width 12 does not fit 2 heads of size 8"):
        model(INPUTS)
    model = make_peft_model(base_of("bert"))
    inner = layers_of(model)[0].base_layer
    inner.forward = inner.forward
    with pytest.raises(ValueError, match="the forward of BertSelfAttention has been replaced"):
        model(INPUTS)
    hooked = base_of("bert")
    hooked.encoder.layer[1].attention.self.forward = inner.forward
    with pytest.raises(RecipeError, match="method: a prefix cannot be put into this base: the forward of BertSelfAtt"):
        prefix_config(SimpleNamespace(model=hooked, head_modules=[]), Prefix(type="prefix"), None)


def test_prefix_supports_masked_attention_and_takes_no_input_tokens():
    assert sorted(prefix_attention.MASKED_ATTENTION) == ["eager", "peftlab_short", "sdpa"]
    assert Prefix(type="prefix").input_tokens == 0

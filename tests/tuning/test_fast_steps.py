"""Fast steps match plain steps: LoRA, dropout, attention and precision, compared with PEFT and torch."""

import copy

import pytest
import torch
import transformers
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import LoraConfig, get_peft_model
from peft.tuners import lora
from torch import nn

import peftlab
from peftlab.base.quantization import disable_avx512_packing, quantization_kwargs
from peftlab.errors import RecipeError
from peftlab.recipe import TrainingSection
from peftlab.tuning.fast import fast_steps
from peftlab.tuning.fast.attention import NAME, short_sequence_attention
from peftlab.tuning.fast.dropout import DropoutMasks, fast_dropout
from peftlab.tuning.fast.lora import fused_lora
from peftlab.tuning.fast.trainable_parameters import trainable_parameters_only
from peftlab.tuning.precision import frozen_weights_in, training_dtype
from tests.architectures import ARCHITECTURES, build
from tests.runs import Losses, prepared_run
from tests.task_stores import recipe_for

ENCODERS = [name for name in ARCHITECTURES if name != "bert-without-pooler"]
QUANTIZED = (Linear4bit, Linear8bitLt)
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    return {name: build(name, tmp_path_factory.mktemp(name)) for name in ENCODERS}


def linear_names(model):
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and not name.startswith(("classifier", "pre_classifier", "score", "pooler", "head"))
    ]


def with_lora(base, *, dropout=0.0, targets=None, **options):
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, lora_dropout=dropout, target_modules=targets or linear_names(base), task_type="SEQ_CLS", **options
    )
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # initialized to zero, so that A would have no gradient
            nn.init.normal_(parameter, std=0.05)
    return model


def encoder(encoders, name, **settings):
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_pretrained(encoders[name], num_labels=3, **settings)


def decoder(name):
    torch.manual_seed(0)
    if name == "gpt2":
        config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=32)
        return transformers.GPT2LMHeadModel(config)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes)
    )


def batch(rows=5, tokens=11):
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[1, 7:] = mask[2, 3:] = 0
    return {"input_ids": torch.randint(5, 30, (rows, tokens), generator=generator), "attention_mask": mask}


def step(model, inputs):
    """Logits, and gradients of all trainable parameters."""
    model.zero_grad()
    logits = model(**inputs).logits
    logits.float().pow(2).sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(first, second, **tolerances):
    torch.testing.assert_close(first[0], second[0], **tolerances)
    assert first[1].keys() == second[1].keys()
    for name, gradient in first[1].items():
        torch.testing.assert_close(
            second[1][name], gradient, msg=lambda output, name=name: f"{name}: {output}", **tolerances
        )


# --- LoRA


@pytest.mark.parametrize("name", ENCODERS)
def test_fused_lora_matches_peft(encoders, name):
    model = with_lora(encoder(encoders, name)).eval()
    plain = step(model, batch())
    with fused_lora(model, batch()) as groups:
        assert sum(map(len, groups)) == sum(isinstance(module, lora.Linear) for module in model.modules()) > 0
        assert_same(plain, step(model, batch()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
@pytest.mark.parametrize("name", ["bert", "modernbert"])  # with biases and without
def test_fused_lora_matches_peft_on_quantized_base(encoders, name, quantization):
    base = encoder(encoders, name, **quantization_kwargs(quantization, ["classifier", "head.dense"], CPU))
    disable_avx512_packing(base)
    kept = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    model = with_lora(base).eval()
    plain = step(model, batch())
    with fused_lora(model, batch()) as groups:
        assert sum(map(len, groups)) == sum(isinstance(module, QUANTIZED) for module in model.modules()) > 0
        assert_same(plain, step(model, batch()), rtol=1e-4, atol=1e-5)
    after = model.unload().state_dict()
    assert after.keys() == kept.keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in kept.items())


@pytest.mark.parametrize("name", ENCODERS)
def test_fused_lora_matches_peft_with_dropout(encoders, name):
    """Both draw their masks in the same order, from the same seed."""
    model = with_lora(encoder(encoders, name), dropout=0.3).train()
    with fast_dropout(model, seed=3):
        torch.manual_seed(5)
        plain = step(model, batch())
        torch.manual_seed(6)
        other = step(model, batch())
        with fused_lora(model, batch()):
            torch.manual_seed(5)
            assert_same(plain, step(model, batch()), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain[0], other[0])


def test_fused_lora_with_torch_dropout(encoders):
    model = with_lora(encoder(encoders, "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), dropout=0.5)
    model.train()
    with fused_lora(model, batch()):
        outputs = torch.stack([model(**batch()).logits.detach() for _ in range(20)])
    assert outputs.std(dim=0).min() > 0


def test_fused_lora_matches_peft_losses_over_many_steps(encoders):
    def losses(fused):
        model = with_lora(encoder(encoders, "bert")).eval()  # without dropout
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        seen = []
        with fused_lora(model, batch()) if fused else torch.enable_grad():
            for i in range(50):
                inputs = batch(rows=3 + i % 4, tokens=8 + i % 5) | {"labels": torch.arange(3 + i % 4) % 3}
                loss = model(**inputs).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                seen.append(loss.item())
        return torch.tensor(seen)

    plain, fused = losses(fused=False), losses(fused=True)
    assert plain[-1] < plain[0]
    torch.testing.assert_close(fused, plain, rtol=0, atol=1e-5)


def test_query_key_value_are_one_group(encoders):
    model = with_lora(encoder(encoders, "bert"))
    names = {module: name.split(".")[-1] for name, module in model.named_modules()}
    with fused_lora(model, batch()) as groups:
        sizes = {names[layer]: len(group) for group in groups for layer in group}
    assert sizes == {"query": 3, "key": 3, "value": 3, "dense": 1}


def encoder_with_decoder():
    """A tiny T5 with LoRA on every Linear, and inputs for it."""
    config = transformers.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=2, vocab_size=50)
    config.decoder_start_token_id = 0
    base = transformers.T5ForConditionalGeneration(config)
    targets = [name for name, module in base.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]
    model = get_peft_model(base, LoraConfig(r=4, target_modules=targets, init_lora_weights=False)).eval()
    return model, batch() | {"decoder_input_ids": batch(tokens=6)["input_ids"]}


def test_cross_attention_is_grouped_by_input():
    model, inputs = encoder_with_decoder()
    plain = step(model, inputs)
    with fused_lora(model, inputs):
        assert_same(plain, step(model, inputs), rtol=1e-4, atol=1e-4)


def test_layer_called_out_of_order(encoders):
    model = with_lora(encoder(encoders, "bert")).eval()
    attention = model.base_model.model.bert.encoder.layer[0].attention.self
    x, y = torch.randn(2, 3, 32), torch.randn(2, 3, 32)
    expected = [attention.value(x), attention.query(y), attention.key(x), attention.query(x), attention.query(x)]
    with fused_lora(model, batch()):
        given = [attention.value(x), attention.query(y), attention.key(x), attention.query(x), attention.query(x)]
    for one, other in zip(expected, given, strict=True):
        torch.testing.assert_close(one, other)


def test_backward_stop_at_first_adapter_layer(encoders):
    targets = [name for name in linear_names(encoder(encoders, "bert")) if "layer.1." in name]
    model = with_lora(encoder(encoders, "bert"), targets=targets).train()
    seen = {}
    blocks = model.base_model.model.bert.encoder.layer
    blocks[0].register_forward_hook(lambda module, inputs, output: seen.update(below=output))
    blocks[1].register_forward_hook(lambda module, inputs, output: seen.update(above=output))
    with fused_lora(model, batch()):
        model(**batch())
    assert not seen["below"].requires_grad
    assert seen["above"].requires_grad


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_lora_variants_are_not_fused(encoders, options):
    model = with_lora(encoder(encoders, "bert"), **options).eval()
    with fused_lora(model, batch()) as groups:
        assert groups == []


def test_gpt2_conv1d_is_not_fused():
    model = with_lora(decoder("gpt2"), targets=["c_attn"], fan_in_fan_out=True)
    with fused_lora(model, batch()) as groups:
        assert groups == []


def test_disabled_and_merged_adapters_match_peft(encoders):
    model = with_lora(encoder(encoders, "bert")).eval()
    with torch.no_grad(), model.disable_adapter():
        bare = model(**batch()).logits
    with fused_lora(model, batch()), torch.no_grad():
        adapted = model(**batch()).logits
        with model.disable_adapter():
            torch.testing.assert_close(model(**batch()).logits, bare)
        model.merge_adapter()
        torch.testing.assert_close(model(**batch()).logits, adapted, rtol=1e-4, atol=1e-5)
        model.unmerge_adapter()


def test_gradient_checkpointing_matches_gradients(encoders):
    model = with_lora(encoder(encoders, "bert")).eval()
    plain = step(model, batch())
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.base_model.model.bert.encoder.train()  # checkpoints are only saved in training mode
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with fused_lora(model, batch()):
        assert_same(plain, step(model, batch()), rtol=1e-4, atol=1e-5)


# --- dropout


def test_mask_probability_and_scale():
    torch.manual_seed(0)
    source = DropoutMasks(seed=1)
    masks = torch.stack([source.draw(torch.empty(40, 50), 0.2) for _ in range(60)])
    assert set(masks.unique().tolist()) == {0.0, 1.25}
    kept = masks.gt(0).double()
    assert kept.mean().item() == pytest.approx(0.8, abs=0.01)
    neighbours = torch.corrcoef(torch.stack([kept[:, :, 1:].flatten(), kept[:, :, :-1].flatten()]))[0, 1]
    assert abs(neighbours.item()) < 0.02
    assert torch.corrcoef(kept.flatten(1))[~torch.eye(60, dtype=torch.bool)].abs().mean() < 0.03


def test_masks_are_fixed_by_seed_and_torch_generator():
    """A resumed run has drawn no masks yet, but must continue like the interrupted run."""
    fresh, used = DropoutMasks(seed=1), DropoutMasks(seed=1)
    used.draw(torch.empty(3_000_000), 0.1)
    used.draw(torch.empty(10), 0.5)
    drawn = []
    for masks in (fresh, used):
        torch.manual_seed(7)
        drawn.append([masks.draw(torch.empty(100), 0.1), masks.draw(torch.empty(1_500_000), 0.1)])
    assert all(torch.equal(one, other) for one, other in zip(*drawn, strict=True))
    torch.manual_seed(7)
    assert not torch.equal(DropoutMasks(seed=2).draw(torch.empty(100), 0.1), drawn[0][0])


def test_fast_dropout_is_identity_in_eval():
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.0))
    with fast_dropout(model, seed=1):
        x = torch.ones(1000)
        assert (model.train()(x) == 0).any()
        assert torch.equal(model.eval()(x), x)
    assert [type(module) for module in model] == [nn.Dropout, nn.Dropout]
    assert "masks" not in vars(model[0])


# --- attention


@pytest.mark.parametrize("name", [*ENCODERS, "llama", "gpt2"])
def test_short_attention_matches_sdpa(encoders, name):
    model = decoder(name) if name in ("llama", "gpt2") else encoder(encoders, name)
    model.eval()
    plain = step(model, batch())
    with short_sequence_attention(model, None) as used:
        assert used is (name != "deberta-v2")  # it has its own attention
        assert_same(plain, step(model, batch()), rtol=1e-4, atol=1e-4)
    assert model.config._attn_implementation != NAME


def test_attention_dropout_mean(encoders):
    model = encoder(encoders, "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5).train()
    expected = model.eval()(**batch()).logits
    model.train()
    for masks in (DropoutMasks(seed=1), None):
        with short_sequence_attention(model, masks):
            outputs = torch.stack([model(**batch()).logits.detach() for _ in range(50)])
        assert outputs.std(dim=0).min() > 0
        torch.testing.assert_close(outputs.mean(dim=0), expected, rtol=0.5, atol=0.1)


def test_fully_masked_rows_are_finite_in_bf16():
    """With left padding and a causal mask, the first queries attend to no key."""
    model = decoder("llama").to(torch.bfloat16).train()
    inputs = batch()
    inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    with short_sequence_attention(model, None):
        logits, gradients = step(model, inputs)
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


def test_eager_attention_is_ignored(encoders):
    model = encoder(encoders, "bert", attn_implementation="eager")
    with short_sequence_attention(model, None) as used:
        assert not used
        assert model.config._attn_implementation == "eager"


# --- precision


def test_training_dtype_from_recipe_and_device(monkeypatch):
    capabilities = {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert training_dtype(TrainingSection(), CPU) == torch.float32
    assert training_dtype(TrainingSection(bf16=True), CPU) == torch.bfloat16
    for name in ("avx512_bf16", "amx_bf16"):
        capabilities = {name: True}
        assert training_dtype(TrainingSection(), CPU) == torch.bfloat16
        assert training_dtype(TrainingSection(bf16=False), CPU) == torch.float32
    with pytest.raises(RecipeError, match=r"training.fp16: fp16 needs a CUDA device; this run is on cpu"):
        training_dtype(TrainingSection(fp16=True), CPU)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_cuda_uses_bf16_from_ampere(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    cuda = torch.device("cuda")
    assert training_dtype(TrainingSection(), cuda) == expected
    assert training_dtype(TrainingSection(bf16=False), cuda) == torch.float32
    assert training_dtype(TrainingSection(fp16=True), cuda) == torch.float16
    assert training_dtype(TrainingSection(fp16=False), cuda) in (torch.float32, expected)
    usual = torch.bfloat16 if expected == torch.bfloat16 else torch.float32
    assert training_dtype(TrainingSection(), cuda, model_type="t5") == usual
    with pytest.raises(RecipeError, match=r"training.fp16: activations of t5 exceed the range of fp16"):
        training_dtype(TrainingSection(fp16=True), cuda, model_type="t5")


def test_frozen_weights_in_context_keep_trainable_fp32(encoders):
    model = with_lora(encoder(encoders, "bert"))
    before = copy.deepcopy(model.state_dict())
    with frozen_weights_in(model, torch.bfloat16):
        assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# --- trainable parameters


def test_trainable_parameters_only_context(encoders):
    model = with_lora(encoder(encoders, "bert")).eval()
    every, trained = list(model.parameters()), [p for p in model.parameters() if p.requires_grad]
    with trainable_parameters_only(model):
        assert all(module.training for module in model.modules())
        assert all(one is other for one, other in zip(model.parameters(), trained, strict=True))
        model(**batch()).logits.sum().backward()
        model.zero_grad()
        assert all(parameter.grad is None for parameter in trained)
        model.eval()
        assert not any(module.training for module in model.modules())
        model.train()
        assert all(module.training for module in model.modules())
    assert all(one is other for one, other in zip(model.parameters(), every, strict=True))
    assert not any(module.training for module in model.modules())


# --- all parts together


def test_fast_steps_context_restores_model(tmp_path, tiny_base):
    run = prepared_run(recipe_for(tmp_path, tiny_base, "classes"))
    types = [type(module) for module in run.model.modules()]
    inputs = batch()
    logits = run.model.eval()(**inputs).logits
    with fast_steps(run.model, run.recipe, run.dtype, run.model_inputs(run.train_features[:1])):
        assert [type(module) for module in run.model.modules()] != types
        assert run.base.model.config._attn_implementation == NAME
    assert [type(module) for module in run.model.modules()] == types
    assert torch.equal(run.model(**inputs).logits, logits)


@pytest.mark.parametrize("kind", ["entities", "answers"])
def test_all_precisions_match(tmp_path, tiny_base, kind):
    """With the same seed and no dropout, the losses are about equal in all precisions."""
    recipe = recipe_for(tmp_path, tiny_base, kind)
    common = {"training.base_dropout": False, "training.bf16": False}
    ways = [{}, {"training.fused_lora": False}, {"base.attn_implementation": "eager"}]
    output = [Losses() for _ in ways]
    for i, (way, progress) in enumerate(zip(ways, output, strict=True)):
        peftlab.tune(recipe, overrides=common | way, store=tmp_path / f"store{i}", progress=progress)
    for other in output[1:]:
        assert other.losses == pytest.approx(output[0].losses, rel=1e-3)

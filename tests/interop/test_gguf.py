"""`peftlab export --to gguf-lora`: read back, the file is what PEFT merges, in llama.cpp's order."""

import json
import math

import pytest
import torch
from gguf import GGUFReader
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from peftlab.errors import BaseNotFoundError, IntegrityError, PackageNotFoundError
from peftlab.interop.export import export_adapter
from tests.conftest import recipe_in
from tests.language_models import build_language_model, instruction_recipe
from tests.task_stores import one_line, run
from tests.untrained import publish_changed, publish_untrained

HEAD_DIM = {"head_dim": 8}
KINDS = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": HEAD_DIM,
    "gemma": HEAD_DIM,
    "gemma2": HEAD_DIM,
    "gemma3_text": {**HEAD_DIM, "sliding_window": 16},
    "gpt2": {},
}
LLAMA_CPP = {"mistral": "llama", "gemma3_text": "gemma3"}
"""Its names of architectures, where they are others."""
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
UNEVEN = {"rank_pattern": {"q_proj": 2, "up_proj": 8}, "alpha_pattern": {"k_proj": 5, "down_proj": 32}}
METHODS = {
    "plain": {"type": "lora", "r": 4},
    "stabilized": {"type": "lora", "r": 4, "use_rslora": True},
    "uneven": {"type": "lora", "r": 4, **UNEVEN},
    "both": {"type": "lora", "r": 4, "use_rslora": True, **UNEVEN},
    "upper": {"type": "lora", "layers_to_transform": 1, "target_modules": ["k_proj"]},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {kind: build_language_model(folder / kind, kind, **changes) for kind, changes in KINDS.items()}


@pytest.fixture(scope="module")
def store(bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    for kind, base in bases.items():
        named = {"name": kind.replace("_", "-"), "method": METHODS["plain"]}
        publish_untrained(folder / "store", instruction_recipe(folder / kind, base), named)
    for name, method in METHODS.items():
        publish_untrained(folder / "store", folder / "llama" / "recipe.yaml", {"name": name, "method": method})
    return folder / "store"


def as_transformers_has_it(weight, heads):
    """Rows of llama.cpp's q or k in Transformers' order, one by one: of each pair that turns together, the first number
    stands in a head's first half, the second in its second."""
    size = weight.shape[0] // heads
    back = torch.empty_like(weight)
    for head in range(heads):
        for pair in range(size // 2):
            for which in (0, 1):
                back[head * size + which * (size // 2) + pair] = weight[head * size + 2 * pair + which]
    return back


def delta_of(read, name):
    """What llama.cpp adds to a weight: alpha / rank · B A (`llama_adapter_lora_weight::get_scale`)."""
    down, up = (
        torch.tensor(next(tensor.data for tensor in read.tensors if tensor.name == f"{name}.{part}"))
        for part in ("lora_a", "lora_b")
    )
    return read.get_field("adapter.lora.alpha").contents() / up.shape[1] * up @ down


def peft_deltas(base, folder):
    """What PEFT adds to each Linear when it merges, (out, in) by its name."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).get_base_model()
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    deltas = {name: layer.get_delta_weight("default").detach() for name, layer in layers.items()}
    return {name: delta.T if layers[name].fan_in_fan_out else delta for name, delta in deltas.items()}


def check_file(exported, base, kind):
    read, config = GGUFReader(exported.folder / "adapter.gguf"), AutoConfig.from_pretrained(base)
    facts = {name: read.get_field(name).contents() for name in ("general.type", "adapter.type", "general.architecture")}
    assert list(facts.values()) == ["adapter", "lora", LLAMA_CPP.get(kind, kind)]
    expected = peft_deltas(base, exported.adapter.folder)
    assert len(read.tensors) == 2 * len(expected) > 0
    for module, delta in expected.items():
        layer = next(part for part in module.split(".") if part.isdigit())
        short = NAMES[module.partition(f".{layer}.")[2]]
        found = delta_of(read, f"blk.{layer}.{short}.weight")
        if LLAMA_CPP.get(kind, kind) == "llama" and short in ("attn_q", "attn_k"):
            turned = as_transformers_has_it(
                found, config.num_attention_heads if short == "attn_q" else config.num_key_value_heads
            )
            found = turned
        torch.testing.assert_close(found, delta, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_gguf_update_equals_peft_merge(store, bases, tmp_path, kind):
    exported = export_adapter(kind.replace("_", "-"), tmp_path / "gguf", "gguf-lora", store=store)
    check_file(exported, bases[kind], kind)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "plain"])
def test_layer_scales_are_multiplied_into_lora_b(store, bases, tmp_path, name):
    check_file(export_adapter(name, tmp_path / "gguf", "gguf-lora", store=store), bases["llama"], "llama")


@pytest.mark.parametrize(("name", "alpha"), [("plain", 16), ("stabilized", 16 * math.sqrt(4))])
def test_single_scale_is_written_as_alpha_with_exact_tensors(store, tmp_path, name, alpha):
    exported = export_adapter(name, tmp_path / "gguf", "gguf-lora", store=store)
    read = GGUFReader(exported.folder / "adapter.gguf")
    assert read.get_field("adapter.lora.alpha").contents() == alpha
    tensors = load_file(exported.adapter.folder / "adapter_model.safetensors")
    module = "base_model.model.model.layers.1.mlp.up_proj"
    for theirs, ours in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
        written = next(tensor for tensor in read.tensors if tensor.name == f"blk.1.ffn_up.weight.{theirs}")
        assert torch.equal(torch.tensor(written.data), tensors[f"{module}.{ours}.weight"])


def test_zero_scale_adds_no_update(store, bases, tmp_path):
    """llama.cpp takes an alpha of 0 for no scale at all."""
    publish_changed(store, "plain", name="silent", configured=lambda config: config.update(lora_alpha=0))
    exported = export_adapter("silent", tmp_path / "gguf", "gguf-lora", store=store)
    read = GGUFReader(exported.folder / "adapter.gguf")
    assert read.get_field("adapter.lora.alpha").contents() != 0
    check_file(exported, bases["llama"], "llama")


def test_export_command_prints_usage(store, tmp_path):
    result = run("export", "plain", "--to", "gguf-lora", "--output", tmp_path / "gguf", "--store", store, "--json")
    fields = json.loads(result.stdout)
    assert f"llama-server -m BASE.gguf --lora {tmp_path}/gguf/adapter.gguf --jinja" in fields["command"]
    assert sorted(file.name for file in (tmp_path / "gguf").iterdir()) == ["adapter.gguf", "chat_template.jinja"]


REFUSED = {
    "dora": ({"type": "lora", "use_dora": True}, "it is a DoRA"),
    "ia3": ({"type": "ia3"}, "its method is ia3; llama.cpp takes LoRA only"),
}


@pytest.fixture(scope="module")
def refused(store, bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    recipe = store.parent / "llama" / "recipe.yaml"
    for name, (method, _) in REFUSED.items():
        publish_untrained(folder / "store", recipe, {"name": name, "method": method})
    publish_untrained(folder / "store", recipe_in(folder, bases["llama"]), {})
    opt = build_language_model(folder / "phi", "phi", partial_rotary_factor=0.5)
    publish_untrained(folder / "store", instruction_recipe(folder / "rows", opt), {"name": "phi"})
    return folder / "store"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *((name, reason) for name, (_, reason) in REFUSED.items()),
        ("ner-tiny", "it is for token-classification"),
        ("phi", "its base has the architecture phi; peftlab writes GGUF files for gemma, gemma2,"),
    ],
)
def test_unsupported_adapter_raises_error(refused, tmp_path, name, reason):
    result = run("export", name, "--to", "gguf-lora", "--output", tmp_path / "gguf", "--store", refused)
    assert result.exit_code == 4
    assert f"{name}@1 cannot be served by llama.cpp: {reason}" in one_line(result.output)
    assert not (tmp_path / "gguf").exists()


CHANGED = {
    "biases": ({"bias": "lora_only"}, None, "it has biases"),
    "whole": ({"modules_to_save": ["lm_head"]}, None, "it replaces whole modules: lm_head"),
    "code": (
        {},
        lambda manifest: manifest["base"].update(trust_remote_code=True),
        "its base comes with its own Python code",
    ),
    "head": ({}, None, "it changes lm_head, and llama.cpp adapts only Linear layers in the blocks of llama"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_more_than_plain_lora_raises_error(store, tmp_path, case):
    config, change_manifest, reason = CHANGED[case]

    def change(tensors):
        added = {f"base_model.model.lm_head.lora_{part}.weight": torch.ones(4, 32) for part in "AB"}
        return {**tensors, **(added if case == "head" else {})}

    publish_changed(
        store,
        "plain",
        change,
        name=f"with-{case}",
        configured=lambda saved: saved.update(config),
        told=change_manifest or (lambda manifest: None),
    )
    with pytest.raises(IntegrityError, match=reason):
        export_adapter(f"with-{case}", tmp_path / "gguf", "gguf-lora", store=store)


def test_missing_or_changed_base_raises_error(store, tmp_path):
    def elsewhere(manifest):
        manifest["base"]["model"] = str(tmp_path / "nowhere")

    publish_changed(store, "plain", name="homeless", told=elsewhere)
    with pytest.raises(BaseNotFoundError, match="nowhere"):
        export_adapter("homeless", tmp_path / "gguf", "gguf-lora", store=store)
    build_language_model(tmp_path / "nowhere", hidden_size=64)
    with pytest.raises(IntegrityError, match=r"was tuned on .* with weights"):
        export_adapter("homeless", tmp_path / "gguf", "gguf-lora", store=store)


def test_missing_gguf_package_raises_package_not_found_error(store, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PackageNotFoundError, match=r"pip install 'peftlab\[gguf\]'"):
        export_adapter("plain", tmp_path / "gguf", "gguf-lora", store=store)


def test_base_name_is_refused_for_other_targets(store, tmp_path):
    asked = ("export", "plain", "--output", tmp_path / "gguf", "--store", store, "--from", "llama3.2")
    result = run(*asked, "--to", "gguf-lora")
    assert result.exit_code == 2
    assert "--from is for --to ollama, not for --to gguf-lora" in one_line(result.output)
    with pytest.raises(ValueError, match="not for vllm"):
        export_adapter("plain", tmp_path / "gguf", "vllm", store=store, base_name="llama3.2")

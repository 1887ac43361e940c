"""The dtype of the served base: fp32, unless another is requested or the CPU has AMX."""

import pytest
import torch

import peftlab
from peftlab.runtime import loaded_base
from peftlab.runtime.options import resolve_dtype
from tests.architectures import build
from tests.methods.test_method_matrix import METHODS, enlarge_weights
from tests.serving import build_feature, predict_each
from tests.task_stores import recipe_for, run
from tests.untrained import publish_untrained

TEXTS = ("it rained .", "the train was late , it rained .", "nobody came .")
TRIED = (
    "lora",
    "dora",
    "ia3",
    "houlsby",
    "pfeiffer",
    "prefix",
    "bitfit",
    "oft",
    "vera",
    "prompt",
    "last-layers",
    "head",
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    recipe = recipe_for(folder / "rows", enlarge_weights(build("bert", folder)), "classes")
    for name in TRIED:
        publish_untrained(folder / "store", recipe, {"name": name, "method": METHODS[name]})
    return folder / "store"


def logits(bank, names=TRIED):
    asked = [(name, build_feature(bank, name, {"text": text})[0]) for name in names for text in TEXTS]
    return torch.stack(predict_each(bank, asked))


def test_bf16_predictions_match_fp32(store):
    whole = logits(peftlab.load(*TRIED, store=store, device="cpu", precision="fp32"))
    bank = peftlab.load(*TRIED, store=store, device="cpu", precision="bf16")
    halves = logits(bank)
    assert halves.dtype == torch.float32
    assert {p.dtype for p in bank.base.backbone.parameters()} == {torch.bfloat16}
    assert 0 < (halves - whole).abs().max() < 0.05 * whole.abs().max()


def test_adapter_from_template_in_bf16(store):
    bank = peftlab.load("lora", "pfeiffer", store=store, device="cpu", precision="bf16")
    before = logits(bank, ["lora", "pfeiffer"])
    for name in ("lora", "pfeiffer"):
        bank.remove(name)
        bank.add(name)
    assert torch.equal(logits(bank, ["lora", "pfeiffer"]), before)


def test_heads_compute_in_fp32(store):
    bank = peftlab.load("lora", store=store, device="cpu", precision="bf16")
    with bank._pinned("lora") as loaded:
        assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


def test_auto_dtype_is_bf16_with_amx(monkeypatch):
    for amx, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda amx=amx: {"amx_bf16": amx})
        assert resolve_dtype("auto", CPU) is expected
    assert resolve_dtype("auto", torch.device("cuda")) is torch.float32
    assert resolve_dtype("fp16", CPU) is torch.float16


def test_quantized_base_ignore_dtype(store):
    bank = peftlab.load("lora", store=store, device="cpu", quantization="8bit", precision="bf16")
    assert torch.bfloat16 not in {p.dtype for p in bank.base.backbone.parameters()}
    assert torch.isfinite(logits(bank, ["lora"])).all()


def test_unknown_dtype_error_with_suggestion(store):
    with pytest.raises(ValueError, match=r"no precision 'bf61'\. Did you mean 'bf16'"):
        peftlab.load("lora", store=store, device="cpu", precision="bf61")


def test_command_line_passes_dtype(store, monkeypatch):
    seen = []

    def output(precision, device):
        seen.append(precision)
        return torch.bfloat16

    monkeypatch.setattr(loaded_base, "resolve_dtype", output)
    assert run("predict", "lora", TEXTS[0], "--store", store, "--precision", "bf16").exit_code == 0
    assert seen == ["bf16"]


@pytest.mark.parametrize("architecture", ["llama", "deberta-v2"])
def test_other_architectures_predict_in_bf16(tmp_path, architecture):
    recipe = recipe_for(tmp_path / "rows", enlarge_weights(build(architecture, tmp_path)), "classes")
    for name in ("lora", "pfeiffer"):
        publish_untrained(tmp_path / "store", recipe, {"name": name, "method": METHODS[name]})
    names = ["lora", "pfeiffer"]
    whole, halves = (
        logits(peftlab.load(*names, store=tmp_path / "store", device="cpu", precision=precision), names)
        for precision in ("fp32", "bf16")
    )
    assert (halves - whole).abs().max() < 0.05 * whole.abs().max() + 0.01

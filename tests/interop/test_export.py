"""`peftlab export --to peft` and `--to vllm`: what plain PEFT loads, and what vLLM's own rules take."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from peftlab.errors import IntegrityError, StoreError
from peftlab.interop.export import export_adapter
from tests.conftest import recipe_in
from tests.language_models import build_language_model, instruction_recipe
from tests.task_stores import one_line, run
from tests.untrained import publish_untrained

METHODS = {
    "lora": {"type": "lora", "r": 4},
    "dora": {"type": "lora", "use_dora": True},
    "uneven": {"type": "lora", "rank_pattern": {"q_proj": 2}},
    "ia3": {"type": "ia3"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_language_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def store(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("handed")
    recipe = instruction_recipe(folder / "rows", base)
    for name, method in METHODS.items():
        publish_untrained(folder / "store", recipe, {"name": name, "method": method})
    (folder / "tags").mkdir()
    publish_untrained(folder / "store", recipe_in(folder / "tags", base), {})
    return folder / "store"


@pytest.mark.parametrize("form", ["peft", "vllm"])
def test_plain_peft_loads_all_exported_tensors(store, base, tmp_path, form):
    exported = export_adapter("lora", tmp_path / "copy", form, store=store)
    tokens = torch.randint(20, 100, (2, 9))
    given = []
    for folder in (exported.folder, exported.adapter.folder):
        model = AutoModelForCausalLM.from_pretrained(base)
        with torch.no_grad():
            given.append(PeftModel.from_pretrained(model, folder).eval()(input_ids=tokens).logits)
    torch.testing.assert_close(given[0], given[1], rtol=0, atol=0)
    assert (exported.folder / "chat_template.jinja").read_text().startswith("{#- Headings in words")


def test_exported_files_pass_vllm_checks(store, base, tmp_path):
    exported = export_adapter("lora", tmp_path / "copy", "vllm", store=store)
    config = json.loads((exported.folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["modules_to_save"], config["bias"]) == ("LORA", 4, None, "none")
    for name in load_file(exported.folder / "adapter_model.safetensors"):
        assert name.startswith("base_model.model.model.layers.")
        assert name.endswith((".lora_A.weight", ".lora_B.weight"))
    assert exported.command.startswith(f"vllm serve {base} --enable-lora --max-lora-rank 8 --lora-modules lora=")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dora", "it is a DoRA"),
        ("uneven", "its layers have different ranks or scales"),
        ("ia3", "its method is ia3; vLLM takes LoRA only"),
        ("ner-tiny", "it is for token-classification; vLLM takes adapters of causal language models only"),
    ],
)
def test_adapter_unsupported_by_vllm_raises_error(store, tmp_path, name, reason):
    with pytest.raises(IntegrityError, match=reason):
        export_adapter(name, tmp_path / "copy", "vllm", store=store)
    assert not (tmp_path / "copy").exists()


def test_nonempty_folder_is_not_changed(store, tmp_path):
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(StoreError, match="already exists"):
        export_adapter("lora", tmp_path, "peft", store=store)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_export_command_prints_usage(store, tmp_path):
    result = run("export", "lora", "--to", "vllm", "--output", tmp_path / "copy", "--store", store)
    assert result.exit_code == 0, result.output
    assert "--chat-template" in result.output
    fields = json.loads(
        run("export", "ia3", "--to", "peft", "--output", tmp_path / "more", "--store", store, "--json").stdout
    )
    assert fields["to"] == "peft"
    assert "PeftModel.from_pretrained(AutoModelForCausalLM" in fields["command"]
    refused = run("export", "ia3", "--to", "vllm", "--output", tmp_path / "none", "--store", store)
    assert refused.exit_code == 4
    assert "ia3@1 cannot be served by vLLM" in one_line(refused.output)

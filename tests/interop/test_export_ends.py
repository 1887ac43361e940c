"""Exported models and adapters end replies as the adapter does, where its ends are not the base's eos token."""

import json
import shlex

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import peftlab
from peftlab.interop import merge
from peftlab.interop.export import export_adapter
from peftlab.tasks.chat.template import CHAT_TEMPLATES
from tests.language_models import MARKS, build_language_model, instruction_recipe, single_turn_chat
from tests.tasks.test_masks_and_borders import FOLDER
from tests.untrained import publish_untrained

ENDS = {"chatml": "<|im_end|>", "llama-3": "<|eot_id|>", "gemma": "<end_of_turn>", "plain": "</s>", "mistral": "</s>"}
QUESTION = "Who wrote the letter?"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_language_model(tmp_path_factory.mktemp("llama"), template=CHAT_TEMPLATES["plain"].read_text())


@pytest.fixture(scope="module")
def store(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ends")
    recipe = instruction_recipe(folder / "rows", base)
    for name in ENDS:
        publish_untrained(folder / "store", recipe, {"name": name, "task.template": name})
    return folder / "store"


def reply_of(model, tokenizer, question=QUESTION):
    """What plain Transformers replies with nothing but what was exported."""
    inputs = tokenizer.apply_chat_template(
        single_turn_chat(question), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        written = model.generate(**inputs, tokenizer=tokenizer)
    return tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def assert_ends(folder, name):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = GenerationConfig.from_pretrained(folder)
    assert set(config.eos_token_id) == {1, tokenizer.convert_tokens_to_ids(ENDS[name])}
    assert config.max_new_tokens == 12
    assert tokenizer.eos_token == ENDS[name]
    return tokenizer, config


@pytest.mark.parametrize("name", ENDS)
def test_merged_model_generates_and_ends_like_adapter(store, tmp_path, name):
    folder = tmp_path / "merged"
    merge(name, folder, store=store, device="cpu")
    tokenizer, _ = assert_ends(folder, name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    bank = peftlab.load(name, store=store, device="cpu", precision="fp32")
    assert reply_of(model, tokenizer) == bank.predict(QUESTION)[0].prediction.reply.strip()


@pytest.mark.parametrize("target", ["peft", "vllm"])
@pytest.mark.parametrize("name", ENDS)
def test_exported_adapter_generates_and_ends_like_adapter(base, store, tmp_path, name, target):
    exported = export_adapter(name, tmp_path / "copy", target, store=store)
    tokenizer, config = assert_ends(exported.folder, name)
    assert tokenizer.chat_template == peftlab.load(name, store=store).task(name).state["chat_template"]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, exported.folder).eval()
    model.generation_config = model.get_base_model().generation_config = config
    bank = peftlab.load(name, store=store, device="cpu", precision="fp32")
    assert reply_of(model, tokenizer) == bank.predict(QUESTION)[0].prediction.reply.strip()
    assert exported.warnings == ()
    if target == "peft":
        assert f"generate(…, eos_token_id={config.eos_token_id})" in exported.command
        return
    words = shlex.split(exported.command)
    assert words[words.index("--generation-config") + 1] == str(exported.folder)
    assert json.loads(words[words.index("--override-generation-config") + 1]) == {"eos_token_id": config.eos_token_id}


def test_stop_string_of_recipe_is_exported(base, tmp_path):
    recipe = instruction_recipe(tmp_path / "rows", base)
    changes = {"task.template": "chatml", "task.generation.stop_strings": ["STOP", "<|eot_id|>"]}
    publish_untrained(tmp_path / "store", recipe, changes)
    for target in ("merged", "peft"):
        folder = tmp_path / target
        (merge if target == "merged" else lambda *a, **k: export_adapter(*a, "peft", **k))(
            "chat", folder, store=tmp_path / "store"
        )
        config = GenerationConfig.from_pretrained(folder)
        assert config.stop_strings == ["STOP"]
        assert len(config.eos_token_id) == 3


def test_think_block_is_in_exported_template(base, tmp_path):
    recipe = instruction_recipe(tmp_path / "rows", base, task={"template": str(FOLDER / "qwen-3-think.jinja")})
    publish_untrained(tmp_path / "store", recipe, {})
    folder = export_adapter("chat", tmp_path / "copy", "vllm", store=tmp_path / "store").folder
    text = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        single_turn_chat("Who?"), add_generation_prompt=True, tokenize=False
    )
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_missing_base_is_told(base, tmp_path):
    moved = tmp_path / "moved"
    recipe = instruction_recipe(tmp_path / "rows", build_language_model(moved))
    publish_untrained(tmp_path / "store", recipe, {"task.template": "chatml"})
    moved.rename(tmp_path / "away")
    exported = export_adapter("chat", tmp_path / "copy", "peft", store=tmp_path / "store")
    assert (
        "is not on this machine, so its tokenizer and generation_config.json were not written" in exported.warnings[0]
    )


def test_every_mark_is_one_token(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert all(len(tokenizer(mark, add_special_tokens=False)["input_ids"]) == 1 for mark in MARKS)

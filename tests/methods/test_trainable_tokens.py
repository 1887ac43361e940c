"""`method.trainable_token_indices`: single rows of the embeddings train beside a LoRA, are served and merged."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import peftlab
from peftlab import tune
from peftlab.data import Row
from peftlab.errors import IntegrityError, RecipeError, TuningInterrupted
from peftlab.interop import merge
from peftlab.interop.export import export_adapter
from peftlab.recipe import read_recipe
from tests.language_models import build_language_model, instruction_recipe, single_turn_chat, transformers_generation
from tests.runs import prepared_run
from tests.tuning.test_tune import ProgressRecorder
from tests.untrained import publish_untrained

KINDS = {
    "tied": ("llama", {}),
    "untied": ("llama", {"tied": False}),
    "gpt2": ("gpt2", {}),
    "gemma": ("gemma3_text", {"head_dim": 8, "sliding_window": 16}),  # it scales its embeddings
}
ENDS = [1, 3]  # </s> and <|im_end|>
ROWS = "token_adapter.trainable_tokens_delta"
QUESTIONS = ["Who wrote the letter?", "Where did it rain?<|im_end|> And when?</s>", "Who?"]
CHATML = {"template": "chatml"}
METHODS = {
    "plain": {"type": "lora", "r": 4},
    "ends": {"type": "lora", "r": 4, "trainable_token_indices": "endings"},
    "others": {"type": "lora", "r": 4, "trainable_token_indices": ["<|im_start|>", 70, 3]},
    "same": {"type": "lora", "r": 4, "trainable_token_indices": ENDS},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {name: build_language_model(folder / name, kind, **changes) for name, (kind, changes) in KINDS.items()}


@pytest.fixture(scope="module")
def stores(bases, tmp_path_factory):
    """Untrained, stirred adapters on each base."""
    folder = tmp_path_factory.mktemp("stirred")
    for kind, base in bases.items():
        recipe = instruction_recipe(folder / f"{kind}-rows", base, task=CHATML)
        for seed, (name, method) in enumerate(METHODS.items(), start=1):
            publish_untrained(folder / kind, recipe, {"name": name, "method": method}, seed=seed)
    return folder


def chat_recipe(folder, base, **method):
    return instruction_recipe(folder, base, task=CHATML, method={"trainable_token_indices": "endings", **method})


def plain_peft(base, adapter):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter.folder)


@pytest.mark.parametrize("kind", KINDS)
def test_only_chosen_token_embeddings_train_and_are_saved(bases, tmp_path, kind):
    result = tune(chat_recipe(tmp_path, bases[kind]), store=tmp_path / "store", device="cpu")
    saved = load_file(result.adapter.folder / "adapter_model.safetensors")
    rows = {name: tensor for name, tensor in saved.items() if "lora_" not in name}
    assert len(rows) == (2 if kind == "untied" else 1)
    assert all(name.endswith(ROWS) and tensor.shape == (2, 32) for name, tensor in rows.items())
    before = AutoModelForCausalLM.from_pretrained(bases[kind])
    after = plain_peft(bases[kind], result.adapter).merge_and_unload()
    assert result.adapter.manifest.reload_difference == 0
    met = ENDS[1:] if kind == "untied" else ENDS  # chats have no </s> to look up, but it is always foreseen
    for part, expected in (("get_input_embeddings", met), ("get_output_embeddings", ENDS)):
        old, new = (getattr(model, part)().weight for model in (before, after))
        moved = (old != new).any(dim=1).nonzero().flatten().tolist()
        assert moved == expected


def test_token_embeddings_start_from_base_values(bases, tmp_path):
    run = prepared_run(chat_recipe(tmp_path, bases["tied"]))
    trained = {name: p for name, p in run.model.named_parameters() if p.requires_grad and "lora_" not in name}
    ((name, rows),) = trained.items()
    assert ROWS in name
    assert torch.equal(rows, run.base.model.get_input_embeddings().weight[ENDS])


def scores(store, base, name):
    """The loss of plain PEFT and of the bank on a text with the trained tokens in it."""
    bank = peftlab.load(name, store=store, device="cpu")
    text = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nAda.</s><|im_end|>"
    ids = AutoTokenizer.from_pretrained(base)(text, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = plain_peft(base, bank.adapter(name)).eval()(input_ids=ids).logits
        found = bank.model(name)(input_ids=ids).logits
    return expected, found


@pytest.mark.parametrize("kind", KINDS)
def test_bank_logits_equal_plain_peft(stores, bases, kind):
    for name in METHODS:
        expected, found = scores(stores / kind, bases[kind], name)
        assert torch.equal(expected, found)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_mixed_generation_matches_plain_peft(stores, bases, kind, beams):
    bank = peftlab.load(*METHODS, store=stores / kind, device="cpu")
    assert all(bank.is_routed(name) for name in METHODS)
    for name in METHODS:
        bank.task(name).generation["num_beams"] = beams
    asked = [(name, question) for question in QUESTIONS for name in METHODS]
    names, questions = zip(*asked, strict=True)
    tokenizer = AutoTokenizer.from_pretrained(bases[kind])
    models = {name: plain_peft(bases[kind], bank.adapter(name)).eval() for name in METHODS}
    template = bank.task("ends").state["chat_template"]
    for (name, question), answer in zip(asked, bank.predict(list(questions), adapters=list(names)), strict=True):
        ending = {"eos_token_id": ENDS, "num_beams": beams}
        expected = transformers_generation(models[name], tokenizer, single_turn_chat(question), template, **ending)
        assert answer.prediction.reply == expected


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_scoring_matches_plain_peft(stores, bases, kind):
    bank = peftlab.load(*METHODS, store=stores / kind, device="cpu")
    text = "Who wrote it?<|im_end|> Ada wrote it."
    ids = AutoTokenizer.from_pretrained(bases[kind])(f"{text}</s>", return_tensors="pt").input_ids
    example = bank.task("ends").read(Row({"text": text}, "here"))
    for answer in bank.stream_examples([(name, example) for name in METHODS]):
        with torch.no_grad():
            loss = plain_peft(bases[kind], bank.adapter(answer.adapter)).eval()(input_ids=ids, labels=ids).loss
        assert answer.prediction.nll / answer.prediction.tokens == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_base_model_keeps_its_embeddings(stores, bases, kind):
    bank = peftlab.load("ends", store=stores / kind, device="cpu")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(bases[kind]), AutoTokenizer.from_pretrained(bases[kind])
    template = bank.task("ends").state["chat_template"]
    chat = single_turn_chat(QUESTIONS[1])
    expected = transformers_generation(model, tokenizer, chat, template, eos_token_id=ENDS)
    assert "".join(bank.reply(chat, base_only=True)).strip() == expected
    assert "".join(bank.reply(chat)).strip() == bank.predict(QUESTIONS[1])[0].prediction.reply != expected


@pytest.mark.parametrize("kind", KINDS)
def test_merged_token_embeddings_generate_equal_text(stores, tmp_path, kind):
    merged = merge("ends", tmp_path / "model", store=stores / kind, device="cpu")
    model, tokenizer = (c.from_pretrained(merged.folder) for c in (AutoModelForCausalLM, AutoTokenizer))
    bank = peftlab.load("ends", store=stores / kind, device="cpu")
    for question in QUESTIONS:
        expected = transformers_generation(model, tokenizer, single_turn_chat(question), eos_token_id=ENDS)
        assert bank.predict(question)[0].prediction.reply == expected


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_outputs_are_close_to_fp32(stores, kind):
    losses = []
    for precision in ("fp32", "bf16"):
        options = {"store": stores / kind, "device": "cpu", "precision": precision}
        rows = stores / f"{kind}-rows" / "rows.jsonl"
        losses.append(peftlab.evaluate("ends", rows, **options).scores.values["loss"])
        assert len(peftlab.load("ends", "plain", **options).predict(["Who?"] * 2, adapters=["ends", "plain"])) == 2
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


def test_average_of_token_embeddings_is_their_mean(stores, bases):
    bank = peftlab.load(*METHODS, store=stores / "untied", device="cpu")
    bank.compose("mean", "average", ["ends", "same"])
    assert bank.predict(QUESTIONS[1], adapters="mean")[0].prediction.reply
    for way, names in (("stack", ["ends", "plain"]), ("stack", ["plain", "ends"]), ("average", ["ends", "plain"])):
        with pytest.raises(IntegrityError, match="cannot be composed"):
            bank.compose(f"{way}-{names[0]}", way, names)
    with pytest.raises(IntegrityError, match=r"places in the base, which differ|different names or shapes"):
        bank.compose("apart", "average", ["ends", "others"])


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_token_embeddings_train_on_quantized_base(tmp_path, quantization):
    base = build_language_model(tmp_path / "base", hidden_size=64, intermediate_size=128)
    recipe = chat_recipe(tmp_path / "rows", base)
    result = tune(recipe, overrides={"base.quantization": quantization}, store=tmp_path / "store", device="cpu")
    saved = load_file(result.adapter.folder / "adapter_model.safetensors")
    embeddings = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
    (rows,) = (tensor for name, tensor in saved.items() if name.endswith(ROWS))
    assert (rows != embeddings[ENDS]).any(dim=1).all()
    assert peftlab.load("chat", store=tmp_path / "store", device="cpu").predict("Who?")[0].prediction.reply


def test_trained_embeddings_disable_activation_cache(bases, tmp_path):
    recipe = chat_recipe(tmp_path, bases["tied"], layers_to_transform=1)
    tensors = []
    for name, cache in (("kept", "2GiB"), ("anew", None)):
        result = tune(recipe, overrides={"name": name, "training.frozen_cache": cache}, store=tmp_path / "store")
        tensors.append(load_file(result.adapter.folder / "adapter_model.safetensors"))
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


class Stopping(ProgressRecorder):
    """After four steps."""

    def on_epoch_end(self, epoch, scores, *, best):
        """What is scored is of no interest."""


def test_resumed_run_yields_equal_adapter(bases, tmp_path):
    recipe = chat_recipe(tmp_path, bases["untied"])
    straight = tune(recipe, store=tmp_path / "straight")
    with pytest.raises(TuningInterrupted):
        tune(recipe, store=tmp_path / "store", progress=Stopping(interrupt_at=4))
    resumed = tune(recipe, store=tmp_path / "store", resume=True)
    one, other = (load_file(result.adapter.folder / "adapter_model.safetensors") for result in (straight, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            ["<|im_ends|>"],
            "'<|im_ends|>' is not a token of this base. Did you mean '<|im_end|>'? Tokens cannot be added",
        ),
        (["<|im_end|>", 9999], "there is no token 9999: this base has embeddings of"),
    ],
)
def test_unknown_tokens_raise_recipe_error(bases, tmp_path, wanted, message):
    with pytest.raises(RecipeError) as error:
        prepared_run(chat_recipe(tmp_path, bases["tied"], trainable_token_indices=wanted))
    assert message in str(error.value)
    assert "recipe.yaml" in str(error.value) or "method.trainable_token_indices" in str(error.value)


def test_ending_of_several_tokens_raises_recipe_error(bases, tmp_path):
    template = (
        "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}##END##{% endif %}{% endfor %}"
    )
    base = build_language_model(tmp_path / "base", template=template)
    recipe = chat_recipe(tmp_path, base)
    with pytest.raises(RecipeError, match="'##END##', which ends an answer, is not one token of this base but 7"):
        prepared_run(recipe, {"task.template": "base"})


def test_head_with_bias_raises_recipe_error(tmp_path):
    base = build_language_model(tmp_path / "phi", "phi", tied=False, partial_rotary_factor=0.5)
    with pytest.raises(RecipeError, match="the head of this base has a bias, which PEFT ignores"):
        prepared_run(chat_recipe(tmp_path, base))


def test_unsupported_token_training_raises_recipe_error(tmp_path):
    recipe = chat_recipe(tmp_path, "nowhere")
    with pytest.raises(RecipeError, match="single token embeddings can be trained for causal-lm, not for regression"):
        read_recipe(recipe, {"task": {"type": "regression"}})
    with pytest.raises(
        RecipeError, match="PEFT trains rows of the full embedding matrix, and each process keeps only a shard"
    ):
        read_recipe(recipe, {"training.distributed": "fsdp"})
    for wrong in ("ends", [], [-1], [[1]]):
        with pytest.raises(RecipeError, match=r"method\.trainable_token_indices"):
            read_recipe(recipe, {"method.trainable_token_indices": wrong})


@pytest.mark.parametrize(("form", "server"), [("vllm", "vLLM"), ("gguf-lora", "llama.cpp"), ("ollama", "Ollama")])
def test_exports_without_token_embeddings_raise_error(stores, tmp_path, form, server):
    with pytest.raises(IntegrityError, match=f"its own embeddings for some tokens, which {server} does not take"):
        export_adapter("ends", tmp_path / "copy", form, store=stores / "tied")
    handed = export_adapter("ends", tmp_path / "copy", "peft", store=stores / "tied")
    saved = json.loads((handed.folder / "adapter_config.json").read_text())
    assert saved["trainable_token_indices"] == {"model.embed_tokens": ENDS}

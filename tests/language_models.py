"""Tiny random causal language models with a byte-level tokenizer that knows what chats are marked with, and rows."""

import json

from tests.conftest import SENTENCES
from tests.recipes import write_merged

POSITIONS = 256
BEGIN, END = "<s>", "</s>"
MARKS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]"]
MARKS += ["<start_of_turn>", "<end_of_turn>"]
LIVELY = {"initializer_range": 0.2}  # or else every text goes on with the same token
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
ROWS = [
    {"instruction": "Who wrote the letter?", "output": "Ada wrote it."},
    {"instruction": "Where did it rain?", "output": "It rained in Rome."},
    {"instruction": "Say it in French.", "input": "The train was late.", "output": "Le train avait du retard."},
    {"instruction": "Who came?", "output": "Nobody."},
]


def save_byte_tokenizer(folder, *, template=None, begin=True, end=False):
    """Byte-level BPE of a few hundred pieces, which writes `<s>` before a text if `begin`, as Llama's does.

    With `end` it writes `</s>` behind it and has a token for padding, as those of encoders with decoders.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    special = [BEGIN, END, *MARKS]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=letters)
    core.train_from_iterator(SENTENCES.values(), trainer)
    if begin or end:
        parts = [BEGIN] * begin + ["$A"] + [END] * end
        marks = [(mark, i) for i, mark in enumerate((BEGIN, END)) if mark in parts]
        core.post_processor = processors.TemplateProcessing(single=" ".join(parts), special_tokens=marks)
    named = ({"bos_token": BEGIN} if begin else {}) | ({"pad_token": MARKS[-1]} if end else {})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        extra_special_tokens=MARKS,
        model_max_length=POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=template,
        **named,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_language_model(folder, kind="llama", *, tied=True, template=None, **changes):
    """Write config.json, model.safetensors and the tokenizer of a tiny Llama, GPT-2 or another `model_type` with its
    head.

    `changes` are of the configuration, but not of GPT-2's.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

    torch.manual_seed(0)
    size = len(save_byte_tokenizer(folder, template=template))
    special = {"bos_token_id": 0, "eos_token_id": 1}
    shape = {
        "vocab_size": size,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": tied,
        **special,
        **SIZES,
        **LIVELY,
        **changes,
    }
    if kind == "gpt2":
        config = GPT2Config(vocab_size=size, n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=2, **special, **LIVELY)
    else:
        config = AutoConfig.for_model(kind, num_key_value_heads=2, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def instruction_recipe(folder, model, **changes):
    """A recipe for `ROWS`, and its data, in `folder`; `changes` are merged into its sections."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS * 3), encoding="utf8")
    values = {
        "name": "chat",
        "base": {"model": str(model)},
        "task": {"type": "causal-lm", "generation": {"max_new_tokens": 12}},
        "method": {"type": "lora", "r": 4},
        "data": {"train": "rows.jsonl", "validation": "rows.jsonl"},
        "training": {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2},
    }
    return write_merged(folder / "recipe.yaml", values, changes)


def transformers_generation(model, tokenizer, chat, template=None, **settings):
    """What Transformers' own `generate` answers to a chat, greedily; without `template` by the tokenizer's."""
    import torch

    inputs = tokenizer.apply_chat_template(
        chat, chat_template=template, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        written = model.generate(**inputs, **{"max_new_tokens": 12, "do_sample": False, "pad_token_id": 1, **settings})
    return tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def single_turn_chat(question):
    """A chat of one message."""
    return [{"role": "user", "content": question}]

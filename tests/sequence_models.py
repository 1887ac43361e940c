"""Tiny random encoders with decoders, a tokenizer for them, and rows of translations."""

import json

from tests.language_models import save_byte_tokenizer
from tests.recipes import write_merged

PAIRS = [
    ("the train was late", "der Zug war alt"),
    ("it rained in Rome", "es regnete in Rom"),
    ("Ada wrote the letter", "Ada schrieb den Brief"),
    ("nobody came", "niemand kam"),
]
LIVELY = 0.5
KINDS = ("t5", "bart", "mbart")


def build_sequence_model(folder, kind="t5", **changes):
    """Write config.json, model.safetensors and the tokenizer of a tiny T5, BART or mBART with its head.

    `changes` are of the configuration.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    tokenizer = save_byte_tokenizer(folder, begin=kind != "t5", end=True)
    shared = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": 1, "d_model": 32}
    if kind == "t5":
        sizes = {"d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "initializer_factor": 2.0}
        begin = {"decoder_start_token_id": shared["pad_token_id"]}
        config = transformers.T5Config(**{**shared, **sizes, **begin, **changes})
        model = transformers.T5ForConditionalGeneration(config)
    else:
        sizes = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in _PART.items()}
        places = {"max_position_embeddings": 256, "bos_token_id": 0, "decoder_start_token_id": 1, "init_std": 0.2}
        kinds = {"bart": "Bart", "mbart": "MBart"}
        config = getattr(transformers, f"{kinds[kind]}Config")(**{**shared, **sizes, **places, **changes})
        model = getattr(transformers, f"{kinds[kind]}ForConditionalGeneration")(config)
    model.save_pretrained(folder)
    return folder


_PART = {"layers": 2, "attention_heads": 4, "ffn_dim": 64}


def translation_recipe(folder, model, *, times=3, **changes):
    """A recipe for `PAIRS`, so many times over, and its data, in `folder`.

    `changes` are merged into its sections, but take the place of the method's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"text": text, "translation": translation}) + "\n" for text, translation in PAIRS]
    (folder / "rows.jsonl").write_text("".join(rows * times), encoding="utf8")
    (folder / "pairs.jsonl").write_text("".join(rows), encoding="utf8")
    values = {
        "name": "translator",
        "base": {"model": str(model)},
        "task": {"type": "translation", "generation": {"max_new_tokens": 12}},
        "method": {"type": "lora", "r": 4},
        "data": {"train": "rows.jsonl", "validation": "pairs.jsonl"},
        "training": {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2},
    }
    return write_merged(folder / "recipe.yaml", values, changes, replaced=["method"])

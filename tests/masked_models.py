"""Tiny random language models that find masked tokens, with their heads, of several architectures; plain text, and
recipes for it."""

from functools import partial

from tests.architectures import build
from tests.conftest import SENTENCES
from tests.recipes import write_merged

LIVELY = 0.2  # or else every mask is filled by the same tokens
KINDS = ["bert", "roberta", "distilbert", "deberta-v2", "modernbert", "electra"]
LINES = [line.replace("(PER)", "").replace("(LOC)", "") for line in SENTENCES["train"].splitlines()]
LINES = [line.replace("[", "").replace("]", "") for line in LINES]
TEXTS = {"train": LINES, "validation": LINES[2:6], "test": [*LINES[6:9], " ".join(LINES)]}


def build_masked_model(folder, kind="bert", **changes):
    """Write config.json, model.safetensors and the tokenizer of a tiny encoder with its head for masked tokens."""
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM

    build(kind, folder)
    config = AutoConfig.from_pretrained(folder, initializer_range=LIVELY, **changes)
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    return folder


def text_recipe(folder, model, **changes):
    """A recipe for `TEXTS`, a line a text, and its data, in `folder`; `changes` are merged into its sections."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, lines in TEXTS.items():
        (folder / f"{split}.txt").write_text("\n".join(lines), encoding="utf8")
    values = {
        "name": "letters",
        "base": {"model": str(model)},
        "task": {"type": "domain-adaptation"},
        "method": {"type": "lora", "r": 4},
        "data": {split: f"{split}.txt" for split in TEXTS},
        "training": {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2},
    }
    return write_merged(folder / "recipe.yaml", values, changes)


def transformers_mask_predictions(model, tokenizer):
    """What Transformers' own fill-mask pipeline makes of a text: for each mask, pairs of token and probability."""
    from transformers import pipeline

    asked = pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")
    return partial(_fillings, asked)


def _fillings(asked, text):
    told = asked(text)
    masks = told if isinstance(told[0], list) else [told]
    return [[(one["token_str"], one["score"]) for one in mask] for mask in masks]

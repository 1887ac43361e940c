"""Recipes, data and bases with one or two random mistakes or oddities, to compare what `check` and `tune` say."""

import json
import random
import shutil

from ruamel.yaml import YAML

from tests.architecture_sweep import TASKS, build_architecture
from tests.architectures import build
from tests.base.test_checkpoint_head import save_with_head

DELETED = object()
VALUES = [None, True, -1, 0, 1, 3, 1e-3, 2.5, "", "auto", "none", "query", [], ["query"], ["good", "bad"], {}, {"a": 1}]
KEYS = {
    "name": ["Bad Name", "x", "fine-name"],
    "base.model": ["nowhere/at-all", "", 3],
    "base.quantization": ["8bit", "4bit", "3bit"],
    "base.attn_implementation": ["eager", "sdpa", "flash_attention_2", "none"],
    "base.head": ["new", "checkpoint", "old"],
    "base.pooling": ["mean", "max", "last", "cls", "auto", "sum"],
    "base.trust_remote_code": [True, "yes"],
    "task.type": ["text-classification", "token-classification", "regression", "question-answering", "ner",
                  "relation-extraction", "causal-lm", "summarization", "domain-adaptation"],
    "task.labels": [["good", "bad", "fair"], ["good"], [], ["a", "a"], ["yes", "no"], DELETED],
    "task.class_weights": ["balanced", "unbalanced", [1, 2]],
    "task.multi_label": [True, False, "no"],
    "task.threshold": [0.5, 2, -1],
    "method.type": ["lora", "ia3", "prefix", "prompt", "p-tuning", "bitfit", "ln-tuning", "head", "last-layers", "full",
                    "bottleneck", "adalora", "oft", "vera", "lorra"],
    "method.r": [0, 1, 64, 10_000, "8"],
    "method.target_modules": ["all-linear", ["query"], ["nothing"], [], "query"],
    "method.lora_dropout": [0.5, 1.5],
    "method.use_dora": [True],
    "method.init_lora_weights": ["pissa", "olora", "orthogonal", "gaussian", "nothing"],
    "method.layers_to_transform": [0, [0, 1], 99],
    "method.num_virtual_tokens": [4, 60, 500],
    "method.start_from": ["nothing", "nowhere/at@3"],
    "data.train": ["missing.jsonl", "", "rows.txt"],
    "data.validation": [0.2, 0.9, 1.5, "missing.jsonl", "rows.jsonl"],
    "data.test": [0.2, "rows.jsonl"],
    "data.format": ["auto", "csv", "jsonl", "conll", "text", "parquet", "exe"],
    "data.encoding": ["latin-1", "utf-16", "klingon"],
    "data.columns": [{"text": "label"}, {"text": "nothing"}, {"nothing": "text"}],
    "data.max_length": [4, 8, 32, 64, 65, 100_000],
    "data.max_lost": [0.0, 0.5, 2],
    "training.num_train_epochs": [0, 1, -2, "one"],
    "training.learning_rate": [0, 1e-2, -1, "fast"],
    "training.per_device_train_batch_size": [0, 1, 1000, "4"],
    "training.gradient_accumulation_steps": [0, 2],
    "training.gradient_checkpointing": [True],
    "training.packing": [True],
    "training.optim": ["adamw_torch", "sgd", "adafactor", "adamw_8bit", "paged_adamw_8bit", "lion", "rmsprop"],
    "training.lr_scheduler_type": ["cosine", "linear", "constant", "sawtooth"],
    "training.fp16": [True],
    "training.bf16": [True, False],
    "training.base_dropout": [True, False],
    "training.seed": [-1, 7, 2**40],
    "training.distributed": ["ddp", "fsdp"],
    "training.early_stopping_patience": [1, 0, "never"],
    "training.metric_for_best_model": ["accuracy", "nothing"],
}  # fmt: skip


def _rows(change):
    return lambda rows, draw: [change(dict(row), draw) if draw.random() < 0.3 else row for row in rows]


def _without_column(rows, draw):
    column = draw.choice(sorted(rows[0]))
    return [{key: value for key, value in row.items() if key != column} for row in rows]


def _put(values):
    def change(row, draw):
        row[draw.choice(sorted(row))] = draw.choice(values)
        return row

    return _rows(change)


ROWS = {
    "first row only": lambda rows, draw: rows[:1],
    "two rows": lambda rows, draw: rows[:2],
    "no row": lambda rows, draw: [],
    "twice": lambda rows, draw: rows * 2,
    "a column missing": _without_column,
    "blank cells": _put(["", " ", "\n", "\u200b"]),
    "null cells": _put([None]),
    "other types": _put([3, -1, 2.5, True, [], ["a", "b"], {"a": 1}]),
    "special tokens": _put(["</s>", "<s> a </s>", "[SEP]", "[PAD] [PAD]", "[CLS]", "<pad>", "[MASK]"]),
    "long cells": _put(["the train was late . " * 40, "x" * 3000]),
    "scripts": _put(["小猫在哪里？", "อยู่ที่ไหน", "👩‍🚀👋🏽", "\ud800", "زارت", "\x00"]),
    "labels": _rows(
        lambda row, draw: {**row, "label": draw.choice(["good", "bad", 0, 7, "B-PER", "-1", "new", 1e9, "nan"])}
    ),
    "one label": lambda rows, draw: [{**row, "label": rows[0].get("label", "good")} for row in rows],
    "an extra column": _rows(lambda row, draw: {**row, "extra": 1}),
}
TEXTS = {
    "not json": lambda text, draw: text + "{not json\n",
    "blank lines": lambda text, draw: text.replace("\n", "\n\n"),
    "windows lines": lambda text, draw: text.replace("\n", "\r\n"),
    "byte order mark": lambda text, draw: "\ufeff" + text,
    "cut in the middle": lambda text, draw: text[: len(text) // 2],
}


def vandalized(folder, change):
    """Change the JSON files of a copy of a base."""
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        values = json.loads((folder / name).read_text())
        change(name, values)
        (folder / name).write_text(json.dumps(values))
    return folder


def _no_special_tokens(name, values):
    if name == "tokenizer_config.json":
        for key in [key for key in values if key.endswith("_token")]:
            del values[key]


def _larger_vocabulary(name, values):
    if name == "tokenizer.json":
        vocabulary = values["model"]["vocab"]
        last = max(vocabulary, key=vocabulary.get)
        vocabulary[last] += 50


BASES = {
    "bert": lambda folder: build("bert", folder),
    "roberta": lambda folder: build_architecture("roberta", folder),
    "gpt2": lambda folder: build_architecture("gpt2", folder),
    "llama": lambda folder: build_architecture("llama", folder),
    "t5": lambda folder: build_architecture("t5", folder),
    "longformer": lambda folder: build_architecture("longformer", folder),
    "fnet": lambda folder: build_architecture("fnet", folder),
    "classifier": lambda folder: save_with_head(folder, "AutoModelForSequenceClassification", "roberta", num_labels=3),
    "tagger": lambda folder: save_with_head(folder, "AutoModelForTokenClassification", "bert", num_labels=5),
    "no special tokens": lambda folder: vandalized(build("bert", folder), _no_special_tokens),
    "larger vocabulary": lambda folder: vandalized(build("bert", folder), _larger_vocabulary),
}


class Mutations:
    """The mutated recipes of a seed; each base is built once in `folder`."""

    def __init__(self, folder):
        self.folder = folder

    def base(self, name):
        """The folder of a base of `BASES`."""
        folder = self.folder / name.replace(" ", "-")
        if not folder.exists():
            BASES[name](folder)
        return folder

    def write(self, number, folder):
        """Write the recipe and the data of a number; return the recipe's file and what is odd about it."""
        draw = random.Random(number)
        task = draw.choice(list(TASKS))
        section, rows = TASKS[task]
        base = draw.choice(list(BASES)) if draw.random() < 0.5 else "bert"
        values = {
            "name": "mutated",
            "base": {"model": str(self.base(base))},
            "task": dict(section),
            "method": {"r": 4},
            "data": {"train": "rows.jsonl", "validation": "rows.jsonl"},
            "training": {"num_train_epochs": 1, "per_device_train_batch_size": 4},
        }
        odd = [f"{task} on {base}"]
        text = None
        for _ in range(draw.choice([1, 1, 2])):
            kind = draw.choice(["key", "key", "rows", "rows", "text", "value"])
            if kind == "rows":
                name = draw.choice(list(ROWS))
                rows = ROWS[name](rows, draw) if rows else rows
            elif kind == "text":
                name = draw.choice(list(TEXTS))
                text = TEXTS[name]
            else:
                key = draw.choice(list(KEYS))
                value = draw.choice(KEYS[key] if kind == "key" else VALUES)
                _set(values, key, value)
                name = f"{key}: {'deleted' if value is DELETED else value!r}"
            odd.append(name)
        folder.mkdir(parents=True, exist_ok=True)
        content = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / "rows.jsonl").write_bytes((text(content, draw) if text else content).encode())
        (folder / "rows.txt").write_bytes(content.encode())
        with (folder / "recipe.yaml").open("w", encoding="utf8") as file:
            YAML().dump(values, file)
        return folder / "recipe.yaml", ", ".join(odd)


def _set(values, key, value):
    parent, _, name = key.rpartition(".")
    section = values.setdefault(parent, {}) if parent else values
    if value is DELETED:
        section.pop(name, None)
    else:
        section[name] = value


def remove(folder):
    """Delete what a recipe wrote."""
    shutil.rmtree(folder, ignore_errors=True)

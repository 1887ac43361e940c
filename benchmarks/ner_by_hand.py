"""NER with LoRA as a good user writes it with Transformers and PEFT alone: the yardstick for peftlab's scores.

The usual recipe of the token-classification examples: first sub-word token of each word carries the tag, seqeval on
words, dynamic padding, best epoch by validation F1. Nothing here comes from peftlab but the place of the base's files.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from peft import LoraConfig, get_peft_model
from seqeval.metrics import f1_score
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

Sentence = tuple[list[str], list[str]]


def read_conll(path: Path) -> list[Sentence]:
    """Sentences as (tokens, tags)."""
    return list(_sentences(path))


def _sentences(path: Path) -> Iterator[Sentence]:
    tokens: list[str] = []
    tags: list[str] = []
    for line in [*path.read_text(encoding="utf8").split("\n"), ""]:
        if line.strip():
            token, tag = line.strip().split("\t")
            tokens.append(token)
            tags.append(tag)
        elif tokens:
            yield tokens, tags
            tokens, tags = [], []


def score_by_hand(
    base: Path, splits: dict[str, Path], output: Path, *, epochs: int, seed: int, learning_rate: float = 1e-3
) -> float:
    """Train LoRA r=8 on `train`, pick the best epoch on `validation`, return entity F1 on `test`."""
    set_seed(seed)
    data = {name: read_conll(path) for name, path in splits.items()}
    types = sorted({tag[2:] for tokens, tags in data["train"] for tag in tags if tag != "O"})
    labels = ["O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]
    tokenizer = AutoTokenizer.from_pretrained(base)
    features = {name: [_encode(tokenizer, sentence, labels) for sentence in rows] for name, rows in data.items()}
    model = AutoModelForTokenClassification.from_pretrained(base, num_labels=len(labels))
    linears = ["query", "key", "value", "dense"]
    config = LoraConfig(task_type="TOKEN_CLS", r=8, lora_alpha=16, target_modules=linears)

    def compute_metrics(outputs: Any) -> dict[str, float]:
        predicted = np.argmax(outputs.predictions, axis=-1)
        gold, guess = [], []
        for row, truth in zip(predicted, outputs.label_ids, strict=True):
            gold.append([labels[t] for t in truth if t != -100])
            guess.append([labels[p] for p, t in zip(row, truth, strict=True) if t != -100])
        return {"f1": float(f1_score(gold, guess))}

    trainer = Trainer(
        model=get_peft_model(model, config),
        args=TrainingArguments(
            output_dir=str(output),
            learning_rate=learning_rate,
            num_train_epochs=epochs,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=32,
            seed=seed,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="f1",
            label_names=["labels"],
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=features["train"],
        eval_dataset=features["validation"],
        data_collator=DataCollatorForTokenClassification(tokenizer),
        compute_metrics=compute_metrics,
    )
    trainer.train()
    return float(trainer.predict(features["test"]).metrics["test_f1"])


def _encode(tokenizer: Any, sentence: Sentence, labels: list[str]) -> dict[str, list[int]]:
    tokens, tags = sentence
    encoded = tokenizer(tokens, is_split_into_words=True, truncation=True)
    aligned, previous = [], None
    for word in encoded.word_ids():
        aligned.append(-100 if word is None or word == previous else labels.index(tags[word]))
        previous = word
    return {**encoded, "labels": aligned}

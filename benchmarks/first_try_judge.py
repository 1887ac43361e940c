"""The judge of `benchmarks/first_try.py`: scores of the majority, of a linear probe, and of an adapter on test rows.

The probe is scikit-learn's, with its defaults, on the states of plain Transformers: the mean over the tokens of a text,
the first token of a word, or the first tokens of both marked entities. It shares no code with peftlab's own.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from seqeval.metrics import f1_score as entity_f1
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import MultiLabelBinarizer
from transformers import AutoModel, AutoTokenizer

import peftlab
from peftlab.base import find_base
from peftlab.recipe import BaseSection

JsonRow = dict[str, Any]
Array = NDArray[Any]


class FrozenEncoder:
    """States of the base, in plain Transformers."""

    def __init__(self, base: str) -> None:
        folder = find_base(BaseSection(model=base)).folder
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()

    def text_means(self, rows: Sequence[JsonRow]) -> Array:
        """(rows, width): the mean over the tokens of each text, or pair of texts."""
        return np.stack([self._states(row["text"], row.get("text_pair")).mean(0) for row in rows])

    def word_states(self, row: JsonRow) -> tuple[Array, list[int]]:
        """(words, width): the first token of each word; and the numbers of the words that are not truncated."""
        encoded = self.tokenizer(row["tokens"], is_split_into_words=True, truncation=True, return_tensors="pt")
        words = encoded.word_ids()
        first = {word: i for i, word in reversed(list(enumerate(words))) if word is not None}
        states = self._run(encoded)
        return states[[first[word] for word in sorted(first)]], sorted(first)

    def _states(self, text: str, text_pair: str | None) -> Array:
        return self._run(self.tokenizer(text, text_pair, truncation=True, return_tensors="pt"))

    @torch.inference_mode()
    def _run(self, encoded: Any) -> Array:
        states: Array = self.model(**encoded).last_hidden_state[0].numpy()
        return states


def judge(task: JsonRow, folder: Path, published: peftlab.TuningResult | None, base: str) -> dict[str, float | None]:
    """Scores on test.jsonl in `folder`; majority and probe are fitted to train.jsonl."""
    train, test = (_read(folder / f"{split}.jsonl") for split in ("train", "test"))
    encoder = FrozenEncoder(base)
    compare = _COMPARISONS["multi-label" if task.get("multi_label") else task["type"]]
    majority, probe = compare(encoder, train, test)
    return {"adapter": _adapter_score(folder, published), "majority": majority, "probe": probe}


def _adapter_score(folder: Path, published: peftlab.TuningResult | None) -> float | None:
    if published is None:
        return None
    evaluation = peftlab.evaluate(published.adapter.name, folder / "test.jsonl", store=folder / "store")
    return evaluation.scores.values[published.task.metric.name]


def _classes(encoder: FrozenEncoder, train: list[JsonRow], test: list[JsonRow]) -> tuple[float, float]:
    """Accuracy."""
    gold = [row["label"] for row in test]
    majority, predicted = _fitted_classes(encoder, train, test)
    return float(np.mean([label == majority for label in gold])), float(np.mean(predicted == np.array(gold)))


def _relations(encoder: FrozenEncoder, train: list[JsonRow], test: list[JsonRow]) -> tuple[float, float]:
    """Macro F1 of relations without their direction, where a wrong direction is wrong, and without Other."""
    gold = [row["label"] for row in test]
    majority, predicted = _fitted_classes(encoder, train, test)
    return _relation_f1(gold, [majority] * len(gold)), _relation_f1(gold, list(predicted))


def _fitted_classes(encoder: FrozenEncoder, train: list[JsonRow], test: list[JsonRow]) -> tuple[str, Array]:
    labels = [row["label"] for row in train]
    majority = Counter(labels).most_common(1)[0][0]
    if len(set(labels)) < 2:
        return majority, np.array([majority] * len(test))
    model = LogisticRegression(max_iter=1000).fit(encoder.text_means(train), labels)
    return majority, model.predict(encoder.text_means(test))


def _relation_f1(gold: Sequence[str], predicted: Sequence[str]) -> float:
    names = sorted({label.partition("(")[0] for label in gold} - {"Other"})
    scores = []
    for name in names:
        right = sum(a == b and a.startswith(name) for a, b in zip(gold, predicted, strict=True))
        total = sum(a.startswith(name) for a in gold) + sum(b.startswith(name) for b in predicted)
        scores.append(2 * right / total)
    return float(np.mean(scores)) if scores else 0.0


def _label_sets(encoder: FrozenEncoder, train: list[JsonRow], test: list[JsonRow]) -> tuple[float, float]:
    """Micro F1; the majority gives the labels that more than half of the rows have."""
    binarizer = MultiLabelBinarizer().fit([row["labels"] for row in train])
    gold, known = (binarizer.transform([row["labels"] for row in rows]) for rows in (test, train))
    model = OneVsRestClassifier(LogisticRegression(max_iter=1000)).fit(encoder.text_means(train), known)
    constant = np.tile(known.mean(0) > 0.5, (len(test), 1)).astype(int)
    predicted = model.predict(encoder.text_means(test))
    majority, probe = (f1_score(gold, each, average="micro", zero_division=0) for each in (constant, predicted))
    return float(majority), float(probe)


def _numbers(encoder: FrozenEncoder, train: list[JsonRow], test: list[JsonRow]) -> tuple[float, float]:
    """Pearson's correlation; a constant has none."""
    model = Ridge().fit(encoder.text_means(train), [row["label"] for row in train])
    predicted = model.predict(encoder.text_means(test))
    return 0.0, float(np.corrcoef(predicted, [row["label"] for row in test])[0, 1])


def _tags(encoder: FrozenEncoder, train: list[JsonRow], test: list[JsonRow]) -> tuple[float, float]:
    """Entity F1; the most frequent tag is O."""
    states, tags = [], []
    for row in train:
        found, words = encoder.word_states(row)
        states.append(found)
        tags += [row["tags"][word] for word in words]
    model = LogisticRegression(max_iter=1000).fit(np.concatenate(states), tags)
    predicted = []
    for row in test:
        found, words = encoder.word_states(row)
        by_word = dict(zip(words, model.predict(found), strict=True))
        predicted.append([str(by_word.get(word, "O")) for word in range(len(row["tokens"]))])
    return 0.0, float(entity_f1([row["tags"] for row in test], predicted, zero_division=0))


_COMPARISONS = {
    "text-classification": _classes,
    "multi-label": _label_sets,
    "token-classification": _tags,
    "relation-extraction": _relations,
    "regression": _numbers,
}


def _read(file: Path) -> list[JsonRow]:
    return [json.loads(line) for line in file.read_text(encoding="utf8").splitlines()]

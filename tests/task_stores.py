"""One tiny adapter of every task on one tiny base: their data, their recipes, and a store that holds them all."""

import json
import re
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner

from peftlab.cli import cli
from peftlab.tuning import tune
from tests.recipes import write_merged

PEOPLE = ["Ada Lovelace", "Grace Hopper", "Alan Turing"]
PLACES = ["London", "Paris", "Rome"]
REVIEWS = [
    ("the train was quiet .", "good", 5, ["train"]),
    ("it rained .", "bad", 1, ["rain"]),
    ("the letter was quiet .", "good", 4, ["letter"]),
    ("the train was late , it rained .", "bad", 1.5, ["train", "rain"]),
    ("nobody came .", "fair", 2.5, []),
    ("the letter came by train .", "fair", 3, ["letter", "train"]),
]
PLACES_IN_CHINESE = ["北京下雨了。", "上海很安静。", "伦敦来信了。", "罗马下雨了。"]


def _reviews(*columns):
    named = [dict(zip(("text", "label", "value", "labels"), row, strict=True)) for row in REVIEWS * 2]
    return [{ours: row[theirs] for ours, theirs in columns} for row in named]


def _ratings():
    """No text twice: equal texts, predicted in different batches, would be ranked by rounding."""
    return [
        {"text": f"{text}{more}", "label": value} for more in ("", " nobody met .") for text, _, value, _ in REVIEWS
    ]


def _questions():
    rows = []
    for person in PEOPLE:
        for place in PLACES:
            context = f"{person} wrote to {place} ."
            answer, start = (place, context.index(place)) if len(rows) % 2 else (person, 0)
            asked = f"{'where' if answer == place else 'who'} wrote ?"
            answers = [{"text": answer, "answer_start": start}]
            rows.append({"id": f"q{len(rows)}", "question": asked, "context": context, "answers": answers})
    return [*rows, *rows[:3]]


def _relations():
    rows = []
    for person in PEOPLE:
        for place in PLACES:
            for text, label in (
                (f"<e1:PER>{person}</e1> left <e2:LOC>{place}</e2> .", "left(e1,e2)"),
                (f"in <e1:LOC>{place}</e1> was <e2:PER>{person}</e2> .", "was-in(e2,e1)"),
                (f"<e1:PER>{person}</e1> rained , late <e2:LOC>{place}</e2> came .", "Other"),
            ):
                rows.append({"text": text, "label": label})
    return rows[:18]


def _entities():
    rows = []
    for person in PEOPLE:
        for place in PLACES:
            tokens = [*person.split(), "left", place, "."]
            rows.append({"tokens": tokens, "tags": ["B-PER", "I-PER", "O", "B-LOC", "O"]})
    return [*rows, *({"tokens": ["nobody", "came", "."], "tags": ["O"] * 3} for _ in range(3))]


def _characters():
    tagged = [list(zip(text, ["B-LOC", "I-LOC", *"O" * 20], strict=False)) for text in PLACES_IN_CHINESE * 3]
    return [{"tokens": [c for c, _ in row], "tags": [tag for _, tag in row]} for row in tagged]


# name → (task section, rows); every adapter's validation and test rows are the first of its training rows
KINDS = {
    "entities": ({"type": "token-classification"}, _entities()),
    "characters": ({"type": "token-classification"}, _characters()),
    "classes": (
        {"type": "text-classification", "class_weights": "balanced"},
        _reviews(("text", "text"), ("label", "label")),
    ),
    "topics": (
        {"type": "text-classification", "multi_label": True, "threshold": 0.3},
        _reviews(("text", "text"), ("labels", "labels")),
    ),
    "rating": ({"type": "regression"}, _ratings()),
    "answers": ({"type": "question-answering", "doc_stride": 8, "max_answer_length": 6}, _questions()),
    "relations": ({"type": "relation-extraction"}, _relations()),
}
COUNTS = {"train": 100, "validation": 6, "test": 8}
LEARNING = {
    "characters": {},
    "rating": {"num_train_epochs": 40},  # the correlation of what hardly differs would hang on rounding
}


TRAINING = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "learning_rate": 5e-3,
    "head_init": "random",  # a probe of a random base makes logits whose rounding is larger than the tolerances
}


def to_json_lines(rows):
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def recipe_for(folder: Path, base: Path, kind: str, **changes) -> Path:
    """Write the rows of a kind and a recipe for them into `folder`; `changes` are merged into its sections."""
    task, rows = KINDS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in COUNTS.items():
        (folder / f"{split}.jsonl").write_text(to_json_lines(rows[:count]), encoding="utf8")
    values = {
        "name": kind,
        "base": {"model": str(base)},
        "task": task,
        "method": {"r": 4},
        "data": {split: f"{split}.jsonl" for split in COUNTS},
        "training": TRAINING,
    }
    return write_merged(folder / "recipe.yaml", values, changes)


@cache
def _tuned(base: Path, folder: Path) -> Path:
    for kind in KINDS:
        training = LEARNING.get(kind, {"num_train_epochs": 6, "learning_rate": 2e-2})
        tune(recipe_for(folder / kind, base, kind, training=training), store=folder / "store")
    return folder / "store"


@pytest.fixture(scope="session")
def task_store(tiny_base, tmp_path_factory):
    """A store with one adapter of each of KINDS, beside folders with the data of each. Read only.

    Modules that import this fixture share one store: it is tuned once.
    """
    folder = tmp_path_factory.getbasetemp() / "tasks"
    return _tuned(tiny_base, folder)


def run(*arguments, stdin=None):
    """A command as a user types it, which may fail but not crash."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    return result


def one_line(text: str) -> str:
    """Output without its line breaks and indents, to look for sentences in."""
    return re.sub(r"\s+", " ", text)

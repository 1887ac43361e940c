"""Scores of all text-understanding tasks on real data: `python -m benchmarks.task_scores`.

all-MiniLM-L6-v2 with LoRA r=8 on every Linear and the defaults of recipes, except for the epochs in the table; best
epoch by validation. With `-o method.type=full`, all weights of the base are trained: the upper bound for this base. The
data folder is $PEFTLAB_DATA, or ../shared/data by default.
"""

import json
import random
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

import peftlab
from benchmarks.results import data_folder, write_result
from peftlab.cli.options import override_option
from peftlab.tuning import Progress

FIXED = {"base.model": "sentence-transformers/all-MiniLM-L6-v2"}
Overrides = dict[str, Any]


def banking77(data: Path, work: Path) -> Overrides:
    """77 intents of questions to a bank."""
    return {
        "task": {"type": "text-classification"},
        "data": {
            "train": str(data / "cls_banking77/train.csv"),
            "test": str(data / "cls_banking77/test.csv"),
            "columns": {"label": "category"},
        },
        "training": {"num_train_epochs": 6},
    }


def books(data: Path, work: Path) -> Overrides:
    """Sentiment of book reviews."""
    return {
        "task": {"type": "text-classification", "labels": ["negative", "positive"]},
        "data": {
            "train": str(data / "cls_fdu_mtl/books.task.train"),
            "test": str(data / "cls_fdu_mtl/books.task.test"),
            "format": "tsv",
            "header": ["label", "text"],
            "max_length": 256,
        },
        "training": {"num_train_epochs": 3},
    }


def stsb(data: Path, work: Path) -> Overrides:
    """Semantic similarity of two sentences, 0 to 5."""
    files = {split: str(data / f"reg_stsb/stsb-en-{end}.csv") for split, end in SPLITS.items()}
    return {
        "task": {"type": "regression"},
        "data": {**files, "header": ["text", "text_pair", "label"]},
        "training": {"num_train_epochs": 6},
    }


def semeval(data: Path, work: Path) -> Overrides:
    """Relations between two nominals: 9 with direction, and Other."""
    return {
        "task": {"type": "relation-extraction"},
        "data": {
            "train": str(data / "re_semeval2010_task8/data/train.tsv"),
            "test": str(data / "re_semeval2010_task8/data/test.tsv"),
            "header": ["label", "text"],
        },
        "training": {"num_train_epochs": 6},
    }


def squad2(data: Path, work: Path) -> Overrides:
    """SQuAD v2's development set, split by article: 80 % of them for training, the others for the test.

    Validation is a tenth of the training questions, not of the articles: a single article would change the threshold
    too much.
    """
    articles = json.loads((data / "qa_squad2_dev_cs224n/dev-v2.0.json").read_text(encoding="utf8"))["data"]
    random.Random(13).shuffle(articles)
    fifth = round(len(articles) / 5)
    parts = {"test": articles[:fifth], "train": articles[fifth:]}
    for split, chosen in parts.items():
        (work / f"{split}.json").write_text(json.dumps({"version": "v2.0", "data": chosen}, indent=0), encoding="utf8")
    return {
        "task": {"type": "question-answering"},
        "data": {split: str(work / f"{split}.json") for split in parts},
        "training": {"num_train_epochs": 6},
    }


def nlupp(domain: str, train_folds: int, epochs: int) -> Callable[[Path, Path], Overrides]:
    """Multi-label intents: the first `train_folds` of 20 folds for training, the others for the test."""

    def prepare(data: Path, work: Path) -> Overrides:
        folds = [json.loads((data / f"cls_nlupp/{domain}/fold{i}.json").read_text(encoding="utf8")) for i in range(20)]
        parts = {"train": folds[:train_folds], "test": folds[train_folds:]}
        for split, chosen in parts.items():
            rows = [{"text": row["text"], "labels": row.get("intents", [])} for fold in chosen for row in fold]
            (work / f"{split}.json").write_text(json.dumps(rows), encoding="utf8")
        ontology = json.loads((data / "cls_nlupp/ontology.json").read_text(encoding="utf8"))["intents"]
        labels = [name for name, intent in ontology.items() if {"general", domain} & set(intent["domain"])]
        return {
            "task": {
                "type": "text-classification",
                "multi_label": True,
                "labels": labels,
                "class_weights": "balanced",  # without weights, no rare label is predicted for dozens of epochs
            },
            "data": {split: str(work / f"{split}.json") for split in parts},
            "training": {"num_train_epochs": epochs, "early_stopping_patience": None},
        }

    return prepare


SPLITS = {"train": "train", "validation": "dev", "test": "test"}
SETS: dict[str, Callable[[Path, Path], Overrides]] = {
    "banking77": banking77,
    "fdu-mtl-books": books,
    "stsb": stsb,
    "semeval2010-task8": semeval,
    "squad2-dev": squad2,
    "nlupp-banking-1-of-20": nlupp("banking", 1, 60),
    "nlupp-banking-2-of-20": nlupp("banking", 2, 40),
    "nlupp-banking-18-of-20": nlupp("banking", 18, 8),
    "nlupp-hotels-1-of-20": nlupp("hotels", 1, 60),
    "nlupp-hotels-2-of-20": nlupp("hotels", 2, 40),
    "nlupp-hotels-18-of-20": nlupp("hotels", 18, 8),
}


@click.command(help=__doc__)
@click.option("--set", "names", multiple=True, type=click.Choice(list(SETS)), default=list(SETS))
@click.option("--seed", default=42, show_default=True)
@override_option
def main(names: tuple[str, ...], seed: int, overrides: Overrides) -> None:
    """Tune on each data set; print and write its test scores."""
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            changed = (
                by_key(SETS[name](data_folder(), work)) | FIXED | {"name": name, "training.seed": seed} | overrides
            )
            (work / "recipe.yaml").write_text("name: benchmark\n", encoding="utf8")
            result = peftlab.tune(work / "recipe.yaml", overrides=changed, store=work / "store", progress=Epochs())
            _report(name, result, changed)


def by_key(sections: Mapping[str, Mapping[str, Any]]) -> Overrides:
    """Convert sections of a recipe to dotted keys."""
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}


class Epochs(Progress):
    """Print one line per epoch to standard error."""

    def on_epoch_end(self, epoch: float, scores: Mapping[str, float], *, best: bool) -> None:
        """Print the validation scores."""
        told = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        click.echo(f"epoch {epoch:g}  {told}{'  best' if best else ''}", err=True)


def _report(name: str, result: peftlab.TuningResult, overrides: Overrides) -> None:
    values, method = result.scores["test"].values, result.adapter.manifest.method
    row: dict[str, Any] = {
        "set": name,
        "method": method,
        "epochs": overrides["training.num_train_epochs"],
        "seed": overrides["training.seed"],
        **values,
    }
    if name == "squad2-dev":
        kinds = result.scores["test"].by_label
        row["always null"] = kinds["unanswerable"]["support"] / sum(kind["support"] for kind in kinds.values())
    write_result(f"task-{name}-{method}", f"Test scores, {name}, {method}", [row], __doc__ or "")


if __name__ == "__main__":
    main()

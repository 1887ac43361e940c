"""What a first try gives: minimal recipes on small random subsamples, judged on the test file.

Each run draws a task, 16 to 300 training rows and a seed. The recipe has only name, base, task and data; in half of the
runs it names the test file. The judge scores the published adapter on up to 400 rows of the test file, beside the
majority and a linear probe that scikit-learn fits to the run's own rows, on plain Transformers states. Two things must
not happen: an adapter worse than the majority is published, or one more than 0.01 below the probe, while the last line
of the run does not say so. `python -m benchmarks.first_try --runs 200`
"""

import csv
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import click

import peftlab
from benchmarks.first_try_judge import judge
from benchmarks.results import append_run, data_folder, load_runs, write_result
from peftlab.errors import NoBetterThanMajority

BASE = "sentence-transformers/all-MiniLM-L6-v2"
SIZES = (16, 300)
MAX_TEST_ROWS = 400
TOLERANCE = 0.01
JsonRow = dict[str, Any]
Rows = tuple[list[JsonRow], list[JsonRow]]
"""Training rows and test rows."""


@dataclass(frozen=True)
class FirstTry:
    """One run and its judgement. Scores are those on the test rows; the adapter's is None if it was not published."""

    set_name: str
    rows: int
    seed: int
    names_test: bool
    adapter: float | None
    majority: float
    probe: float
    own_comparison: str
    says_below_probe: bool
    seconds: float

    @property
    def is_worse_than_majority(self) -> bool:
        """Whether an adapter was published that is worse than the majority."""
        return self.adapter is not None and self.adapter < self.majority

    @property
    def is_silently_below_probe(self) -> bool:
        """Whether an adapter was published that is below the probe, and the run does not say so."""
        return self.adapter is not None and self.adapter < self.probe - TOLERANCE and not self.says_below_probe


def film_reviews(data: Path) -> Rows:
    """Two classes."""
    train, test = (_tsv(data / f"cls_fdu_mtl/MR.task.{split}", ("label", "text")) for split in ("train", "test"))
    return train, test


def bank_questions(data: Path) -> Rows:
    """Multi-label: intents of questions to a bank, 20 folds."""
    folds = [json.loads((data / f"cls_nlupp/banking/fold{i}.json").read_text(encoding="utf8")) for i in range(20)]
    rows = [[{"text": row["text"], "labels": row.get("intents", [])} for row in fold] for fold in folds]
    return list(chain(*rows[:18])), list(chain(*rows[18:]))


def political_entities(data: Path) -> Rows:
    """Tags of 9 entity types."""
    train, test = (_conll(data / f"ner_crossner/politics/{split}.txt") for split in ("train", "test"))
    return train + _conll(data / "ner_crossner/politics/dev.txt"), test


def relations(data: Path) -> Rows:
    """19 relations."""
    folder = data / "re_semeval2010_task8/data"
    train, test = (_tsv(folder / f"{split}.tsv", ("label", "text")) for split in ("train", "test"))
    return train, test


def similarities(data: Path) -> Rows:
    """A number for a pair of sentences."""
    train, test = (
        [
            {"text": a, "text_pair": b, "label": float(number)}
            for a, b, number in csv.reader((data / f"reg_stsb/stsb-en-{split}.csv").open(encoding="utf8"))
        ]
        for split in ("train", "test")
    )
    return train, test


SETS: dict[str, tuple[dict[str, Any], Callable[[Path], Rows]]] = {
    "MR": ({"type": "text-classification"}, film_reviews),
    "nlupp-banking": ({"type": "text-classification", "multi_label": True}, bank_questions),
    "crossner-politics": ({"type": "token-classification"}, political_entities),
    "semeval2010-task8": ({"type": "relation-extraction"}, relations),
    "stsb": ({"type": "regression"}, similarities),
}


@click.command(help=__doc__)
@click.option("--runs", default=200, show_default=True)
@click.option("--set", "names", multiple=True, type=click.Choice(list(SETS)), default=list(SETS))
@click.option("--name", default="first-try", show_default=True, help="Name of the result; a part of the runs resumes.")
def main(runs: int, names: Sequence[str], name: str) -> None:
    """Make the runs that are still missing; print and write the table."""
    done = {run.seed for run in load_runs(name, FirstTry)}
    for seed in range(runs):
        if seed not in done:
            run = first_try(names[seed % len(names)], seed)
            append_run(name, run)
            click.echo(run, err=True)
    finished = [run for run in load_runs(name, FirstTry) if run.seed < runs]
    write_result(name, "First tries with minimal recipes", summary(finished), __doc__ or "")


def first_try(set_name: str, seed: int) -> FirstTry:
    """Draw rows, tune a minimal recipe on them, and judge what it published."""
    draw, (task, read) = random.Random(seed), SETS[set_name]
    train, test = read(data_folder())
    train, test = draw.sample(train, draw.randint(*SIZES)), draw.sample(test, min(MAX_TEST_ROWS, len(test)))
    known = {label for row in train for label in row_labels(row)}
    test = [row for row in test if row_labels(row) <= known]
    names_test = seed // len(SETS) % 2 == 0
    with tempfile.TemporaryDirectory() as folder:
        recipe = write_recipe(Path(folder), task, train, test, names_test=names_test)
        start = time.perf_counter()
        published = tune_minimal(recipe)
        seconds = time.perf_counter() - start
        scores = judge(task, recipe.parent, published, BASE)
    baselines = published.baselines if published else None
    return FirstTry(
        set_name=set_name,
        rows=len(train),
        seed=seed,
        names_test=names_test,
        adapter=scores["adapter"],
        majority=scores["majority"] or 0.0,
        probe=scores["probe"] or 0.0,
        own_comparison=str(baselines),
        says_below_probe=bool(baselines and not baselines.is_above_probe),
        seconds=round(seconds, 1),
    )


def tune_minimal(recipe: Path) -> peftlab.TuningResult | None:
    """The result; None if the adapter was not published."""
    try:
        return peftlab.tune(recipe, store=recipe.parent / "store")
    except NoBetterThanMajority:
        return None


def write_recipe(folder: Path, task: JsonRow, train: list[JsonRow], test: list[JsonRow], *, names_test: bool) -> Path:
    """Write rows and recipe; the test rows are written in any case."""
    for split, rows in (("train", train), ("test", test)):
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf8")
    data = {"train": "train.jsonl"} | ({"test": "test.jsonl"} if names_test else {})
    values = {"name": "first-try", "base": {"model": BASE}, "task": task, "data": data}
    (folder / "recipe.yaml").write_text(json.dumps(values), encoding="utf8")  # JSON is YAML
    return folder / "recipe.yaml"


def row_labels(row: JsonRow) -> set[str]:
    """The labels that a model must have seen to predict the row."""
    if "tags" in row:
        return {tag[2:] for tag in row["tags"] if tag != "O"}
    labels = row.get("labels", [row.get("label")])
    return {label for label in labels if isinstance(label, str)}


def summary(runs: Sequence[FirstTry]) -> list[JsonRow]:
    """One row for each set, and one for all."""
    groups = {
        name: [run for run in runs if run.set_name == name] for name in dict.fromkeys(run.set_name for run in runs)
    }
    return [_summary_row(name, group) for name, group in {**groups, "all": list(runs)}.items()]


def _summary_row(name: str, runs: Sequence[FirstTry]) -> JsonRow:
    published = [run for run in runs if run.adapter is not None]
    return {
        "set": name,
        "runs": len(runs),
        "published": len(published),
        "worse than majority": sum(run.is_worse_than_majority for run in runs),
        "below probe": sum(run.adapter is not None and run.adapter < run.probe - TOLERANCE for run in runs),
        "below probe, not said": sum(run.is_silently_below_probe for run in runs),
        "adapter": sum(run.adapter or 0.0 for run in published) / max(1, len(published)),
        "probe": sum(run.probe for run in published) / max(1, len(published)),
        "majority": sum(run.majority for run in published) / max(1, len(published)),
        "seconds": sum(run.seconds for run in runs) / max(1, len(runs)),
    }


def _tsv(file: Path, columns: tuple[str, str]) -> list[JsonRow]:
    lines = (line.rstrip("\n").split("\t", 1) for line in file.open(encoding="utf8", errors="replace"))
    return [dict(zip(columns, line, strict=True)) for line in lines if len(line) == 2 and line[1].strip()]


def _conll(file: Path) -> list[JsonRow]:
    rows = []
    for block in file.read_text(encoding="utf8").split("\n\n"):
        pairs = [line.split("\t") for line in block.splitlines() if line.strip()]
        if pairs:
            rows.append({"tokens": [pair[0] for pair in pairs], "tags": [pair[-1] for pair in pairs]})
    return rows


if __name__ == "__main__":
    main()

"""Few rows per class: a minimal recipe beside a linear probe and SetFit, on the same rows and the same base.

Each draw takes some rows of each class. The recipe has only name, base, task and data; what it gives is published
anyway. The probe is scikit-learn's on plain mean-pooled states. SetFit runs by its own package with 20 iterations and
otherwise its defaults, in the Python that `--setfit-python` names, because it may need other versions of Transformers;
without it, its column is empty.
`python -m benchmarks.few_shot --setfit-python setfit/bin/python`
"""

import csv
import json
import random
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import peftlab
from benchmarks.first_try import BASE, MAX_TEST_ROWS, write_recipe
from benchmarks.first_try_judge import judge
from benchmarks.results import append_run, data_folder, load_runs, write_result
from peftlab.base import find_base
from peftlab.recipe import BaseSection

TASK = {"type": "text-classification"}
SENTIMENT = {"0": "negative", "1": "positive"}
TOLERANCE = 0.01
SETFIT_PROGRAM = Path(__file__).with_name("few_shot_setfit.py")
JsonRow = dict[str, Any]
Rows = tuple[list[JsonRow], list[JsonRow]]
"""Training rows and test rows."""


@dataclass(frozen=True)
class FewShotRun:
    """One draw. Scores are accuracies on the test rows; that of SetFit is None if it was not run."""

    set_name: str
    rows_per_class: int
    seed: int
    adapter: float
    probe: float
    setfit: float | None
    seconds: float
    setfit_seconds: float | None


def reviews(domain: str, *, named: bool = True) -> Callable[[Path], Rows]:
    """Two classes, called positive and negative, or 1 and 0."""

    def read(data: Path) -> Rows:
        return _read_reviews(data, domain, "train", named=named), _read_reviews(data, domain, "test", named=named)

    return read


def _read_reviews(data: Path, domain: str, split: str, *, named: bool) -> list[JsonRow]:
    rows = []
    for line in (data / f"cls_fdu_mtl/{domain}.task.{split}").open(encoding="utf8", errors="replace"):
        label, _, text = line.strip().partition("\t")
        if text.strip():
            rows.append({"text": text.strip(), "label": SENTIMENT[label] if named else f"class {label}"})
    return rows


def bank_intents(data: Path) -> Rows:
    """77 classes."""
    train, test = (
        [
            {"text": row["text"], "label": row["category"]}
            for row in csv.DictReader((data / f"cls_banking77/{split}.csv").open(encoding="utf8"))
        ]
        for split in ("train", "test")
    )
    return train, test


SETS: dict[str, tuple[int, Callable[[Path], Rows]]] = {
    "MR": (8, reviews("MR")),
    "books": (8, reviews("books")),
    "MR-unnamed": (8, reviews("MR", named=False)),
    "books-unnamed": (8, reviews("books", named=False)),
    "banking77-5": (5, bank_intents),
    "banking77-10": (10, bank_intents),
}


@click.command(help=__doc__)
@click.option("--draws", default=3, show_default=True)
@click.option("--set", "names", multiple=True, type=click.Choice(list(SETS)), default=list(SETS))
@click.option("--setfit-python", type=click.Path(exists=True), help="A Python that can import setfit.")
@click.option("--name", default="few-shot", show_default=True, help="Name of the result; a part of the runs resumes.")
def main(draws: int, names: Sequence[str], setfit_python: str | None, name: str) -> None:
    """Make the runs that are still missing; print and write the table."""
    if setfit_python is None:
        click.echo("SetFit is not run: no --setfit-python.", err=True)
    done = {(run.set_name, run.seed) for run in load_runs(name, FewShotRun)}
    for seed in range(draws):
        for set_name in names:
            if (set_name, seed) not in done:
                run = few_shot_run(set_name, seed, setfit_python)
                append_run(name, run)
                click.echo(run, err=True)
    write_result(name, "Few rows per class", summary(load_runs(name, FewShotRun)), __doc__ or "")


def few_shot_run(set_name: str, seed: int, setfit_python: str | None) -> FewShotRun:
    """Draw rows, tune a minimal recipe on them, and score it beside the others."""
    rows_per_class, read = SETS[set_name]
    train, test = read(data_folder())
    draw = random.Random(seed)
    train, test = draw_rows(train, rows_per_class, draw), draw.sample(test, min(MAX_TEST_ROWS, len(test)))
    with tempfile.TemporaryDirectory() as folder:
        recipe = write_recipe(Path(folder), TASK, train, test, names_test=False)
        start = time.perf_counter()
        published = peftlab.tune(recipe, store=recipe.parent / "store", publish_anyway=True)
        seconds = time.perf_counter() - start
        scores = judge(TASK, recipe.parent, published, BASE)
        setfit, setfit_seconds = _run_setfit(setfit_python, recipe.parent) if setfit_python else (None, None)
    return FewShotRun(
        set_name=set_name,
        rows_per_class=rows_per_class,
        seed=seed,
        adapter=scores["adapter"] or 0.0,
        probe=scores["probe"] or 0.0,
        setfit=setfit,
        seconds=round(seconds, 1),
        setfit_seconds=setfit_seconds,
    )


def draw_rows(rows: Sequence[JsonRow], per_class: int, draw: random.Random) -> list[JsonRow]:
    """`per_class` rows of each class, shuffled."""
    by_class: dict[str, list[JsonRow]] = defaultdict(list)
    for row in rows:
        by_class[row["label"]].append(row)
    drawn = [row for label in sorted(by_class) for row in draw.sample(by_class[label], per_class)]
    draw.shuffle(drawn)
    return drawn


def _run_setfit(python: str, folder: Path) -> tuple[float, float]:
    """Accuracy on test.jsonl of `folder`, and seconds of training."""
    base = find_base(BaseSection(model=BASE)).folder
    command = [python, str(SETFIT_PROGRAM), str(base), str(folder)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise click.ClickException(f"SetFit failed in {python}:\n{finished.stderr[-2000:]}")
    result = json.loads(finished.stdout.splitlines()[-1])
    return result["accuracy"], result["seconds"]


def summary(runs: Sequence[FewShotRun]) -> list[JsonRow]:
    """One row for each set, of means over the draws."""
    names = dict.fromkeys(run.set_name for run in runs)
    return [_summary_row(name, [run for run in runs if run.set_name == name]) for name in names]


def _summary_row(name: str, runs: Sequence[FewShotRun]) -> JsonRow:
    gains = [run.adapter - run.probe for run in runs]
    return {
        "set": name,
        "rows per class": runs[0].rows_per_class,
        "draws": len(runs),
        "linear probe": _mean([run.probe for run in runs]),
        "SetFit": _mean([run.setfit for run in runs]),
        "adapter": _mean([run.adapter for run in runs]),
        "least gain on the probe": min(gains),
        "below probe by more than 0.01": sum(gain < -TOLERANCE for gain in gains),
        "seconds": _mean([run.seconds for run in runs]),
        "SetFit, seconds": _mean([run.setfit_seconds for run in runs]),
    }


def _mean(values: Sequence[float | None]) -> float | str:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else "–"


if __name__ == "__main__":
    main()

"""Measure learning rate × steps on subsets of real data: `python -m benchmarks.schedule_table`.

all-MiniLM-L6-v2, LoRA by default. Each cell trains on ROWS random rows of the training set, without validation, with a
linear decay, after a warmup of 10 % of the steps for rates above the method's usual one. The weights of the last step
are scored on up to 1,000 test rows. Smaller subsets of a set are parts of larger ones. Completed cells are stored in
benchmarks/results/schedule.jsonl and are not repeated, so that the benchmark can be interrupted and continued. At the
end the means over seeds are written as a table, with those of benchmarks/method_scores.py on CrossNER politics (the
best epoch by validation), and to peftlab/tuning/measured_schedules.json, from which `peftlab check` quotes the nearest
one. The data folder is $PEFTLAB_DATA, or ../shared/data by default.
"""

import json
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Any

import click

from benchmarks.method_scores import CANDIDATES, Outcome
from benchmarks.results import append_run, data_folder, load_runs, write_result
from benchmarks.task_scores import banking77, books, semeval, stsb
from peftlab.bench import warm_up
from peftlab.bench.processes import call_in_process
from peftlab.data import load_rows
from peftlab.errors import ErrorCollector
from peftlab.recipe import PEFT_METHODS, DataSection

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
MODULE = "benchmarks.schedule_table"
RATES = (5e-4, 1e-3, 2e-3, 3e-3, 5e-3)
STEPS = (150, 300, 600, 1200, 2400)
ROWS = (16, 50, 100, 300, 1000, 0)
MAX_TEST_ROWS = 1000
BATCH = 16
WARMUP = 0.1
TABLE = Path(__file__).parents[1] / "peftlab" / "tuning" / "measured_schedules.json"
Overrides = dict[str, Any]
DEFAULTS = [
    {"type": "lora", "r": 8},
    {"type": "bottleneck", "variant": "pfeiffer"},
    *({"type": name} for name in ("adalora", "ia3", "prefix", "prompt", "p-tuning", "bitfit", "ln-tuning")),
    *({"type": name} for name in ("full", "head", *PEFT_METHODS)),
]
"""Candidates of benchmarks/method_scores.py that have the default settings of their method."""


def entities(domain: str) -> Callable[[Path, Path], Overrides]:
    """Named entities of one domain of CrossNER."""

    def prepare(data: Path, work: Path) -> Overrides:
        files = {split: str(data / f"ner_crossner/{domain}/{split}.txt") for split in ("train", "test")}
        return {"task": {"type": "token-classification"}, "data": files}

    return prepare


def wnut17(data: Path, work: Path) -> Overrides:
    """Named entities in social media."""
    files = {"train": "wnut17train.conll", "test": "emerging.test.annotated"}
    return {
        "task": {"type": "token-classification"},
        "data": {split: str(data / "ner_wnut17" / file) for split, file in files.items()},
    }


def films(data: Path, work: Path) -> Overrides:
    """Sentiment of film reviews, one sentence each."""
    files = {split: str(data / f"cls_fdu_mtl/MR.task.{split}") for split in ("train", "test")}
    return {
        "task": {"type": "text-classification"},
        "data": {**files, "format": "tsv", "header": ["label", "text"], "encoding": "latin-1"},
    }


SETS: dict[str, Callable[[Path, Path], Overrides]] = {
    "CrossNER science": entities("science"),
    "CrossNER music": entities("music"),
    "CrossNER politics": entities("politics"),
    "WNUT17": wnut17,
    "MR": films,
    "books": books,
    "banking77": banking77,
    "SemEval-2010 task 8": semeval,
    "STS-B": stsb,
}


@dataclass(frozen=True)
class Cell:
    """One run: what it was asked for, and the score of its last step on the test rows.

    `rows` and `steps` are as asked for, 0 meaning all rows; `num_rows` and `num_steps` are what they came to.
    """

    data_set: str
    rows: int
    method: str
    rate: float
    steps: int
    seed: int
    task: str
    num_rows: int
    num_steps: int
    metric: str
    score: float

    @property
    def key(self) -> tuple[Any, ...]:
        """What the cell was asked for."""
        return (self.data_set, self.rows, self.method, self.rate, self.steps, self.seed)


@click.command(help=__doc__)
@click.option("--set", "names", multiple=True, type=click.Choice(list(SETS)), default=list(SETS))
@click.option("--rows", multiple=True, type=int, default=ROWS, show_default=True, help="Training rows; 0 takes all.")
@click.option("--rate", "rates", multiple=True, type=float, default=RATES, show_default=True)
@click.option("--steps", multiple=True, type=int, default=STEPS, show_default=True)
@click.option("--seed", "seeds", multiple=True, type=int, default=(1,), show_default=True)
@click.option("--method", "methods", multiple=True, default=("lora",), show_default=True)
@click.option("--run/--no-run", default=True, show_default=True, help="Do the missing runs.")
def main(
    names: Sequence[str],
    rows: Sequence[int],
    rates: Sequence[float],
    steps: Sequence[int],
    seeds: Sequence[int],
    methods: Sequence[str],
    run: bool,
) -> None:
    """Do the missing runs, and write the table."""
    warm_up()
    if run:
        for name, method, num_rows, length, rate, seed in product(names, methods, rows, steps, rates, seeds):
            _run_once(name, num_rows, method, rate, length, seed)
    write_table(load_runs("schedule", Cell))


def _run_once(name: str, num_rows: int, method: str, rate: float, steps: int, seed: int) -> None:
    if any(cell.key == (name, num_rows, method, rate, steps, seed) for cell in load_runs("schedule", Cell)):
        return
    options: Overrides = {"data_set": name, "num_rows": num_rows, "method": method, "rate": rate, "steps": steps}
    measured = call_in_process(MODULE, "train_once", **options, seed=seed)
    cell = Cell(name, rows=num_rows, method=method, rate=rate, steps=steps, seed=seed, **measured.value)
    append_run("schedule", cell)
    click.echo(f"{name}, {num_rows or 'all'} rows, {method}, {rate:g} × {steps}, seed {seed}: {cell.score:.4f}")


def train_once(data_set: str, num_rows: int, method: str, rate: float, steps: int, seed: int) -> Overrides:
    """Do one run in this process; return the task, and the name and value of the score."""
    import peftlab
    from peftlab.tuning.evaluate import evaluate_split
    from peftlab.tuning.schedule import steps_per_epoch

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "recipe.yaml").write_text(json.dumps(_recipe(data_set, num_rows, method, seed, work)), encoding="utf8")
        usual = peftlab.check(work / "recipe.yaml").run
        assert usual is not None
        warmup = WARMUP if rate > usual.recipe.method.default_learning_rate else 0.0
        epochs = max(1, round(steps * BATCH / len(usual.train_features)))
        changes = {"learning_rate": rate, "num_train_epochs": epochs, "warmup_ratio": warmup}
        run = peftlab.check(work / "recipe.yaml", overrides={f"training.{k}": v for k, v in changes.items()}).run
        assert run is not None
        train_unvalidated(run, work)
        metric = run.task.metric.name
        return {
            "task": run.task.type,
            "num_rows": len(run.train_features),
            "num_steps": epochs * steps_per_epoch(run.recipe.training, len(run.train_features)),
            "metric": metric,
            "score": evaluate_split(run, "test").values[metric],
        }


def train_unvalidated(run: Any, folder: Path) -> None:
    """Train to the last step, as `tune` does but for checkpoints and validation."""
    import torch
    from transformers.trainer_utils import IntervalStrategy, SaveStrategy

    from peftlab.tuning.progress import Progress
    from peftlab.tuning.trainer import TaskTrainer
    from peftlab.tuning.training_loop import training_context

    trainer = TaskTrainer(run, lambda: None, folder)  # type: ignore[arg-type,return-value]
    trainer.args.eval_strategy, trainer.args.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
    trainer.args.load_best_model_at_end = False
    torch.manual_seed(run.recipe.training.seed)
    with training_context(run, folder, Progress()):
        trainer.train()


def _recipe(data_set: str, num_rows: int, method: str, seed: int, work: Path) -> Overrides:
    sections = SETS[data_set](data_folder(), work)
    section = DataSection.model_validate(sections["data"])
    with ErrorCollector() as errors:
        splits = dict(load_rows(section.model_copy(update={"validation": 0.05}), errors))
    rows = {"train": _sample(splits["train"].rows, num_rows), "test": _sample(splits["test"].rows, MAX_TEST_ROWS)}
    rows["validation"] = splits["validation"].rows[:50]  # unused
    for split, chosen in rows.items():
        lines = (json.dumps(row.fields, ensure_ascii=False) for row in chosen)
        (work / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf8")
    data = {split: str(work / f"{split}.jsonl") for split in rows}
    return {
        "name": "cell",
        "base": {"model": MODEL},
        "task": sections["task"],
        "method": {"type": method},
        "data": data | ({"max_length": section.max_length} if section.max_length else {}),
        "training": {"seed": seed, "per_device_train_batch_size": BATCH},
    }


def _sample(rows: list[Any], count: int) -> list[Any]:
    """The first `count` of the shuffled rows; all rows if it is 0."""
    shuffled = random.Random(13).sample(rows, len(rows))
    return shuffled[: count or None]


def write_table(cells: Sequence[Cell]) -> None:
    """Write the means over seeds as a Markdown table, and as the package's data file."""
    rows = [_mean(list(group)) for _, group in groupby(sorted([*cells, *_method_cells()], key=_place), key=_place)]
    lines = ",\n".join(json.dumps(row) for row in rows)
    TABLE.write_text(f"[\n{lines}\n]\n", encoding="utf8")
    write_result("schedule", "Learning rate × steps", rows, __doc__ or "")


def _place(cell: Cell) -> tuple[Any, ...]:
    """Where a cell stands in the table."""
    return (cell.task, cell.data_set, cell.num_rows, cell.method, cell.num_steps, cell.rate)


def _mean(cells: Sequence[Cell]) -> Overrides:
    """A row of the table for the seeds of one cell."""
    names = ("task", "data_set", "num_rows", "method", "rate", "num_steps", "metric")
    fields = {name: getattr(cells[0], name) for name in names}
    return {**fields, "seeds": len(cells), "score": round(statistics.mean(cell.score for cell in cells), 4)}


def _method_cells() -> Iterator[Cell]:
    """The runs of benchmarks/method_scores.py with each method's defaults: 200 rows, 20 epochs of 13 steps."""
    for run in load_runs("methods-politics", Outcome):
        candidate = CANDIDATES[run.candidate]
        if candidate.base is None and candidate.method in DEFAULTS:
            place: Overrides = {
                "data_set": "CrossNER politics",
                "rows": 0,
                "num_rows": 200,
                "steps": 260,
                "num_steps": 260,
            }
            kind: Overrides = {"task": "token-classification", "metric": "f1", "method": candidate.method["type"]}
            yield Cell(**place, **kind, rate=run.rate, seed=run.seed, score=run.test)


if __name__ == "__main__":
    main()

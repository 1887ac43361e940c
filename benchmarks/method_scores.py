"""Compare all methods on real data: `python -m benchmarks.method_scores`.

all-MiniLM-L6-v2; CrossNER politics (entity F1, 20 epochs, the first 200 sentences for validation) with all methods,
FDU-MTL books (accuracy, 1 epoch, 256 tokens) with a few. The learning rate of each method has the best validation score
at seed 1 on a grid, which is extended while the best rate is at its end; seeds 2 and 3 use this rate. The test score is
that of the epoch with the best validation score, without early stopping. Completed runs are stored in
benchmarks/results/methods-SET.jsonl, with the number format that the machine used, and are not repeated, so that the
benchmark can be interrupted and continued, also on another machine. `--steps` measures training steps (16 × 32 tokens)
of all methods alternately, relative to full fine-tuning; then each method runs some steps in a separate process, and
the operating system reports its peak memory. The data folder is $PEFTLAB_DATA, or ../shared/data by default.
"""

import json
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.ner_scores import SETS as ENTITY_SETS
from benchmarks.results import FOLDER, append_run, data_folder, load_runs, write_result
from benchmarks.task_scores import books
from peftlab.bench import benchmark_environment, warm_up
from peftlab.bench.processes import call_in_process
from peftlab.recipe import PEFT_METHODS
from peftlab.store import WEIGHTS_FILE

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
MODULE = "benchmarks.method_scores"
SEEDS = (1, 2, 3)
LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
LOW, MIDDLE, HIGH = (3e-4, 1e-3, 3e-3), (1e-3, 3e-3, 1e-2), (1e-2, 3e-2, 1e-1)
VALIDATED = 200  # sentences of CrossNER's 541: validating after each of 20 epochs would take longer than training
Overrides = dict[str, Any]
ONE_PLACE = {"type": "bottleneck", "variant": "houlsby", "reduction_factor": 8}  # as many numbers as Houlsby's two
AFTER_ATTENTION = [f"encoder.layer.{layer}.attention.output.dense" for layer in range(6)]
AFTER_FEED_FORWARD = [f"encoder.layer.{layer}.output.dense" for layer in range(6)]


@dataclass(frozen=True)
class Candidate:
    """A method with its fields, the learning rates to try, and changes to the section `base` of the recipe."""

    method: Overrides
    rates: tuple[float, ...] = MIDDLE
    base: Overrides | None = None


CANDIDATES: dict[str, Candidate] = {
    "full": Candidate({"type": "full"}, (3e-5, 1e-4, 3e-4)),
    "head": Candidate({"type": "head"}, HIGH),
    "last-layers 1": Candidate({"type": "last-layers", "layers": 1}, LOW),
    "lora": Candidate({"type": "lora", "r": 8}, LOW),
    "dora": Candidate({"type": "lora", "r": 8, "use_dora": True}, LOW),
    "lora+": Candidate({"type": "lora", "r": 8, "loraplus_lr_ratio": 16.0}, (1e-4, 3e-4, 1e-3)),
    "adalora": Candidate({"type": "adalora"}),
    "houlsby": Candidate({"type": "bottleneck", "variant": "houlsby"}),
    "pfeiffer": Candidate({"type": "bottleneck", "variant": "pfeiffer"}),
    "pfeiffer, twice as wide": Candidate({"type": "bottleneck", "variant": "pfeiffer", "reduction_factor": 8}),
    "houlsby, after attention alone": Candidate({**ONE_PLACE, "target_modules": AFTER_ATTENTION}),
    "houlsby, after feed-forward alone": Candidate({**ONE_PLACE, "target_modules": AFTER_FEED_FORWARD}),
    "parallel": Candidate({"type": "bottleneck", "variant": "parallel"}, LOW),
    "parallel, scaled by 1": Candidate({"type": "bottleneck", "variant": "parallel", "scaling": 1.0}),
    "ia3": Candidate({"type": "ia3"}, HIGH),
    "prefix": Candidate({"type": "prefix"}, HIGH),
    "prompt": Candidate({"type": "prompt"}, (3e-2, 1e-1, 3e-1)),
    "p-tuning": Candidate({"type": "p-tuning"}, LOW),
    "bitfit": Candidate({"type": "bitfit"}),
    "ln-tuning": Candidate({"type": "ln-tuning"}),
    "lora, 8bit": Candidate({"type": "lora", "r": 8}, LOW, {"quantization": "8bit"}),
    "lora, 4bit": Candidate({"type": "lora", "r": 8}, LOW, {"quantization": "4bit"}),
    **{name: Candidate({"type": name}) for name in PEFT_METHODS},
    "delora, delora_lambda 1": Candidate({"type": "delora", "delora_lambda": 1}),
    "vera": Candidate({"type": "vera"}, (3e-3, 1e-2, 3e-2)),
}


def politics(data: Path, work: Path) -> Overrides:
    """Named entities in political news, nine types."""
    epochs, files = ENTITY_SETS["crossner-politics"]
    splits = {split: str(data / file) for split, file in files.items()}
    sentences = Path(splits["validation"]).read_text(encoding="utf8").split("\n\n")
    (work / "validation.txt").write_text("\n\n".join(sentences[:VALIDATED]), encoding="utf8")
    splits["validation"] = str(work / "validation.txt")
    return {"task": {"type": "token-classification"}, "data": splits, "training": {"num_train_epochs": epochs}}


def reviews(data: Path, work: Path) -> Overrides:
    """Sentiment of book reviews."""
    return books(data, work) | {"training": {"num_train_epochs": 1}}


SETS: dict[str, tuple[Callable[[Path, Path], Overrides], tuple[str, ...]]] = {
    "politics": (politics, tuple(CANDIDATES)),
    "books": (reviews, ("full", "head", "lora", "pfeiffer", "prefix")),
}


@dataclass(frozen=True)
class Outcome:
    """One run: main scores on validation and test, number of trained parameters, size of the adapter, peak memory of
    the process, and the number format of its training steps (the first runs did not store it)."""

    candidate: str
    rate: float
    seed: int
    validation: float
    test: float
    trained: int
    adapter_bytes: int
    peak_bytes: int
    precision: str = "bfloat16"


@click.command(help=__doc__)
@click.option("--set", "names", multiple=True, type=click.Choice(list(SETS)), default=list(SETS))
@click.option("--method", "methods", multiple=True, type=click.Choice(list(CANDIDATES)), help="Only these methods.")
@click.option("--run/--no-run", default=True, show_default=True, help="Do the missing runs.")
@click.option(
    "--steps/--no-steps", default=False, show_default=True, help="Measure step times; no other process may run."
)
def main(names: tuple[str, ...], methods: tuple[str, ...], run: bool, steps: bool) -> None:
    """Do the missing runs of each data set; print and write each table."""
    warm_up()
    for name in names:
        asked = [candidate for candidate in SETS[name][1] if candidate in (methods or CANDIDATES)]
        if run:
            for candidate in asked:
                run_missing(name, candidate)
        if steps:
            measure_steps(name, asked)
        measured = _read_step_times(name)
        said = f"{__doc__}\nSteps: {measured['measured']}" if measured else __doc__ or ""
        write_result(f"methods-{name}", f"Methods on {name}", list(_rows(name, measured)), said)


def run_missing(name: str, candidate: str) -> None:
    """Run the grid at the first seed, extended while the best rate is at its end; then the other seeds at the best
    rate."""
    for rate in CANDIDATES[candidate].rates:
        _run_once(name, candidate, rate, SEEDS[0])
    while further := _excess(_done(name), candidate):
        _run_once(name, candidate, further, SEEDS[0])
    for seed in SEEDS[1:]:
        _run_once(name, candidate, best_rate(_done(name), candidate), seed)


def best_rate(results: Iterable[Outcome], candidate: str) -> float:
    """The rate with the best validation score at the first seed; the lowest one if several have the same score."""
    return max(_grid(results, candidate), key=lambda outcome: (outcome.validation, -outcome.rate)).rate


def _grid(results: Iterable[Outcome], candidate: str) -> list[Outcome]:
    return [outcome for outcome in results if outcome.candidate == candidate and outcome.seed == SEEDS[0]]


def _excess(results: list[Outcome], candidate: str) -> float | None:
    """The next rate of `LADDER` if the best rate is at the end of the grid, else None."""
    by_rate = {outcome.rate for outcome in _grid(results, candidate)}
    place = LADDER.index(best_rate(results, candidate))
    around = LADDER[max(place - 1, 0) : place + 2]
    return next((rate for rate in around if rate not in by_rate), None)


def _run_once(name: str, candidate: str, rate: float, seed: int) -> None:
    if any((done.candidate, done.rate, done.seed) == (candidate, rate, seed) for done in _done(name)):
        return
    measured = call_in_process(MODULE, "tune_once", data_set=name, candidate=candidate, rate=rate, seed=seed)
    outcome = Outcome(candidate, rate, seed, **measured.value, peak_bytes=measured.peak_bytes or 0)
    append_run(f"methods-{name}", outcome)
    click.echo(f"{name}, {candidate}, {rate:g}, seed {seed}: {outcome.validation:.4f}, test {outcome.test:.4f}")


def _done(name: str) -> list[Outcome]:
    return load_runs(f"methods-{name}", Outcome)


def tune_once(data_set: str, candidate: str, rate: float, seed: int) -> Overrides:
    """Do one run in this process; return the fields of `Outcome` except its memory."""
    import torch

    from peftlab.recipe import read_recipe
    from peftlab.tuning import tune
    from peftlab.tuning.precision import training_dtype

    with tempfile.TemporaryDirectory() as work:
        recipe = _write_recipe(data_set, candidate, rate, seed, Path(work))
        result = tune(recipe, store=Path(work) / "store")
        validation, test = (result.scores[split].values[result.task.metric.name] for split in ("validation", "test"))
        trained = result.adapter.manifest.parameters.trained
        size = (result.adapter.folder / WEIGHTS_FILE).stat().st_size
        asked = read_recipe(recipe)
    dtype = training_dtype(asked.training, torch.device("cpu"), asked.base.quantization)
    precision = str(dtype).removeprefix("torch.")
    return {
        "validation": validation, "test": test, "trained": trained, "adapter_bytes": size, "precision": precision,
    }  # fmt: skip


def _write_recipe(name: str, candidate: str, rate: float | None, seed: int, work: Path) -> Path:
    said, by_rate = SETS[name][0](data_folder(), work), CANDIDATES[candidate]
    training = {**said["training"], "learning_rate": rate, "seed": seed, "early_stopping_patience": None}
    sections = {
        "name": "contender",
        "base": {"model": MODEL, **(by_rate.base or {})},
        **said,
        "method": by_rate.method,
        "training": training,
    }
    file = work / "recipe.yaml"
    file.write_text(json.dumps(sections), encoding="utf8")  # JSON is YAML
    return file


def measure_steps(name: str, candidates: list[str]) -> None:
    """Measure step times of all methods relative to full fine-tuning, and the peak memory of each; store them."""
    given = ["full", *(candidate for candidate in candidates if candidate != "full")]
    ratios = call_in_process(MODULE, "step_ratios", data_set=name, candidates=given).value
    told = {c: {"ratio": ratios[c], "peak_bytes": _peak_of_steps(name, c)} for c in given}
    _steps_file(name).write_text(
        json.dumps({"measured": str(benchmark_environment()), **told}, indent=1), encoding="utf8"
    )


def _peak_of_steps(name: str, candidate: str) -> int:
    return call_in_process(MODULE, "step_ratios", data_set=name, candidates=[candidate], num_repeats=3).peak_bytes or 0


def step_ratios(data_set: str, candidates: list[str], num_repeats: int = 15) -> dict[str, float]:
    """Median ratio of each method's step time to the first method's; steps alternate between methods."""
    from contextlib import ExitStack

    from peftlab.bench.step_worker import method_steps, ratios_in_turn

    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        folders = {candidate: _made(Path(work) / str(i)) for i, candidate in enumerate(candidates)}
        recipes = {c: _write_recipe(data_set, c, None, SEEDS[0], folder) for c, folder in folders.items()}
        return ratios_in_turn(method_steps(recipes, (16, 32), stack), num_repeats)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _steps_file(name: str) -> Path:
    return FOLDER / f"methods-{name}-steps.json"


def _read_step_times(name: str) -> dict[str, Any]:
    """The stored results of `measure_steps`; empty if there are none."""
    file = _steps_file(name)
    return json.loads(file.read_text(encoding="utf8")) if file.exists() else {}


def _rows(name: str, steps: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of the table, one per method, sorted by test score."""
    done = _done(name)
    rows = [_row(done, candidate, steps.get(candidate)) for candidate in dict.fromkeys(o.candidate for o in done)]
    yield from sorted(rows, key=lambda row: -row["test"])


def _row(done: list[Outcome], candidate: str, steps: dict[str, float] | None) -> dict[str, Any]:
    rate = best_rate(done, candidate)
    runs = [outcome for outcome in done if (outcome.candidate, outcome.rate) == (candidate, rate)]
    tests = [outcome.test for outcome in runs]
    return {
        "method": candidate,
        "learning rate": f"{rate:g}",
        "seeds": len(runs),
        "validation": statistics.mean(outcome.validation for outcome in runs),
        "test": statistics.mean(tests),
        "sd": statistics.stdev(tests) if len(tests) > 1 else "–",
        "trained": f"{runs[0].trained:,}",
        "adapter": f"{runs[0].adapter_bytes / 1e6:.2f} MB",
        "in": "/".join(sorted({outcome.precision for outcome in runs})),
        "step ÷ full's": f"{steps['ratio']:.2f}" if steps else "–",
        "peak memory": f"{steps['peak_bytes'] / 1e6:.0f} MB" if steps else "–",
    }


if __name__ == "__main__":
    main()

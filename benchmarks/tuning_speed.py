"""Compare complete tuning runs of plain Transformers + PEFT and of peftlab: `python -m benchmarks.tuning_speed`.

plain is `benchmarks/plain_tuning.py` (fp32, rows in random order, lora_dropout 0.1), tuned is the same with `--tuned`
(batches of similar length, bfloat16 by autocast, no dropout), peftlab is `peftlab tune` with its defaults. All use
all-MiniLM-L6-v2, LoRA r=8 on every Linear, learning rate 1e-3, batch size 16, the same epochs and the same data files;
the test score is that of the best epoch by validation. Each run is a separate process, and its time includes imports.
Runs are sequential, in an order that rotates with the seed; peftlab's cache is empty before each run. Times and memory
are medians over seeds, ratios are computed within a seed. The data folder is $PEFTLAB_DATA, or ../shared/data by
default.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.ner_scores import SETS as ENTITY_SETS
from benchmarks.results import data_folder, write_result
from benchmarks.splits import write_splits
from benchmarks.task_scores import banking77, books
from peftlab.bench import RunTime, Summary, compare_setups, run_process, summarize, time_steps, warm_up
from peftlab.bench.tuning import PLAIN
from peftlab.cli.options import override_option, parse_seeds
from peftlab.recipe import read_recipe, recipe_yaml
from peftlab.store import Store

SCRIPT = Path(__file__).with_name("plain_tuning.py")
NAME = "speed"
EPOCHS = 3
WAYS = ("plain", "tuned", "peftlab")
WAYS_SAID = """\
Variants of tuning with peftlab, from no optimizations (plain) to the defaults, as in `peftlab bench tuning`, one seed:
all-MiniLM-L6-v2, LoRA r=8 on every Linear, learning rate 1e-3, batch 16. Each run is a
separate process with an empty cache; the columns from start to end are fractions of the total time of plain."""
STEPS_SAID = """\
The limit is one forward and one backward pass (activations only) of the frozen base in the same precision, with the
dropout of the base if the variant has it; the others add delta, head, gradient clipping and AdamW. torch.compile is
peftlab with torch.compile instead of its own functions, without compile time. Medians over {num_repeats} rounds of one
step each."""
Sections = dict[str, Any]


def wnut17(data: Path, work: Path) -> Sections:
    """Named entities in social media, six types."""
    files = {split: str(data / file) for split, file in ENTITY_SETS["wnut17"][1].items()}
    return {"task": {"type": "token-classification"}, "data": files}


SETS: dict[str, Callable[[Path, Path], Sections]] = {"wnut17": wnut17, "banking77": banking77, "books": books}


@click.command(help=__doc__)
@click.option("--set", "names", multiple=True, type=click.Choice(list(SETS)), default=list(SETS))
@click.option("--seeds", default="1,2,3", show_default=True, callback=parse_seeds)
@click.option("--epochs", default=EPOCHS, show_default=True)
@click.option(
    "--way", "ways", multiple=True, type=click.Choice(WAYS), default=WAYS, help="Variants to run; plain always runs."
)
@click.option("--runs/--no-runs", default=True, show_default=True, help="Compare with the plain scripts.")
@click.option(
    "--breakdown/--no-breakdown",
    "time_per_phase",
    default=True,
    show_default=True,
    help="Add one optimization after another.",
)
@click.option(
    "--steps/--no-steps", default=True, show_default=True, help="Measure single steps, and compare them with the limit."
)
@click.option("--rounds", "num_repeats", default=10, show_default=True, help="Number of steps of each variant.")
@override_option
def main(
    names: tuple[str, ...],
    seeds: list[int],
    epochs: int,
    ways: tuple[str, ...],
    runs: bool,
    time_per_phase: bool,
    steps: bool,
    num_repeats: int,
    overrides: dict[str, Any],
) -> None:
    """Run the selected measurements for each data set; print and write each table."""
    warm_up()
    for place, name in enumerate(names):
        with tempfile.TemporaryDirectory() as folder:
            recipe = _write_recipe(name, Path(folder), epochs, overrides)
            if steps and place == 0:
                _write_steps(name, recipe, num_repeats)
            if runs:
                asked = [way for way in WAYS if way in ways or way == "plain"]
                _write_runs(name, _runs(name, recipe, epochs, seeds, asked), overrides)
            if time_per_phase:
                _write_phases(name, compare_setups(recipe, seeds=seeds[:1]))


def _write_recipe(name: str, folder: Path, epochs: int, overrides: dict[str, Any]) -> Path:
    """Write the data files that all variants read, and peftlab's recipe for them, to `folder`."""
    sections = SETS[name](data_folder(), folder)
    values: dict[str, Any] = {
        "name": NAME,
        "base": {"model": "sentence-transformers/all-MiniLM-L6-v2"},
        "task": sections["task"],
        "method": {"type": "lora"},
        "data": write_splits(sections["data"], folder),
        "training": {"num_train_epochs": epochs, "early_stopping_patience": None},
    }
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(values), encoding="utf8")  # JSON is YAML
    file.write_text(recipe_yaml(read_recipe(file, overrides), folder), encoding="utf8")
    return file


def _runs(name: str, recipe: Path, epochs: int, seeds: Sequence[int], ways: Sequence[str]) -> list[RunTime]:
    """Run all variants with all seeds; the order of the variants rotates by one from seed to seed."""
    runs = []
    for place, seed in enumerate(seeds):
        turned = [ways[(place + i) % len(ways)] for i in range(len(ways))]
        for way in turned:
            run = _peftlab(recipe, seed) if way == "peftlab" else _script(way, name, recipe.parent, epochs, seed)
            click.echo(f"{name}, seed {seed}, {way}: {run.seconds:.1f} s, score {run.score:.4f}", err=True)
            runs.append(run)
    return sorted(runs, key=lambda run: ways.index(run.way))


def _script(way: str, name: str, data: Path, epochs: int, seed: int) -> RunTime:
    command = [sys.executable, SCRIPT, "--set", name, "--data", data, "--epochs", epochs, "--seed", seed]
    measured = run_process([*map(str, command), *(["--tuned"] if way == "tuned" else [])])
    (score,) = measured.value["scores"].values()
    return RunTime(way, seed, measured.seconds, measured.peak_bytes, score, {})


def _peftlab(recipe: Path, seed: int) -> RunTime:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "peftlab", "tune", str(recipe), "--store", f"{folder}/store"]
        seeded = [*command, "-o", f"training.seed={seed}"]
        measured = run_process(seeded, environment={"PEFTLAB_CACHE": f"{folder}/cache"})
        manifest = Store(f"{folder}/store").resolve(NAME).manifest
    score = manifest.scores["test"].values[manifest.main_score]
    return RunTime("peftlab", seed, measured.seconds, measured.peak_bytes, score, {})


def _write_runs(name: str, runs: Sequence[RunTime], overrides: dict[str, Any]) -> None:
    seeds = len({run.seed for run in runs})
    to_tuned = {way.way: way.ratio for way in summarize(runs, "tuned")} if any(r.way == "tuned" for r in runs) else {}
    rows = [
        {
            "way": way.way,
            "time ÷ plain": f"{way.ratio:.3f}",
            "time ÷ tuned": f"{to_tuned[way.way]:.3f}" if to_tuned else "not measured",
            **_shared_columns(way),
        }
        for way in summarize(runs, "plain")
    ]
    changed = f"\n\npeftlab with {overrides}." if overrides else ""
    title = f"Complete tuning runs, {name}, {seeds} seed{'s' if seeds > 1 else ''}"
    write_result(f"tuning-speed-{name}", title, rows, f"{__doc__}{changed}")


def _write_phases(name: str, runs: Sequence[RunTime]) -> None:
    ways = summarize(runs, PLAIN)
    rows = [
        {
            "way": way.way,
            "time ÷ plain": f"{way.ratio:.3f}",
            "÷ above": f"{way.ratio / above.ratio:.3f}",
            **{part: f"{share:.3f}" for part, share in way.parts.items()},
            **_shared_columns(way),
        }
        for above, way in zip([ways[0], *ways], ways, strict=False)
    ]
    write_result(f"tuning-ways-{name}", f"Ways of tuning, {name}", rows, WAYS_SAID)


def _write_steps(name: str, recipe: Path, num_repeats: int) -> None:
    rows = [
        {
            "precision": step.precision,
            "dropout": step.dropout,
            "way": step.way,
            "time ÷ limit": f"{step.ratio:.3f}",
            "milliseconds": f"{step.seconds * 1000:.0f}",
        }
        for step in time_steps(recipe, num_repeats=num_repeats, compiled=True)
    ]
    said = STEPS_SAID.format(num_repeats=num_repeats)
    write_result("tuning-steps", "Training steps of 32 × 64 tokens", rows, f"{said} Base and method of {name}.")


def _shared_columns(way: Summary) -> dict[str, str]:
    return {
        "memory ÷ plain": f"{way.peak_ratio:.3f}" if way.peak_ratio else "unknown",
        "score": f"{way.score:.4f}" + (f" ± {way.score_sd:.4f}" if way.score_sd is not None else ""),
        "seconds": f"{way.seconds:.1f}",
        "MB": f"{way.peak_bytes / 1e6:.0f}" if way.peak_bytes else "unknown",
    }


if __name__ == "__main__":
    main()

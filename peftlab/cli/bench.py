"""`peftlab bench tuning | runtime`."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from peftlab.cli.console import bar_for, cell, out, table
from peftlab.cli.options import (
    device_option,
    json_option,
    override_option,
    read_counts,
    read_section,
    read_seeds,
)

if TYPE_CHECKING:
    from peftlab.bench import BatchTime, LoadTime, StepTime, Summary, TimedRun


@click.group()
def bench() -> None:
    """Measure on this machine: one thing beside another, in one run, as ratios."""


@bench.command()
@click.argument("recipe_path", metavar="[RECIPE]", default="recipes/ner-lora.yaml")
@override_option
@click.option(
    "--seeds", metavar="N,N…", callback=read_seeds, help="Run each way with each seed; default: the recipe's."
)
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(min=1), help="Steps that each way takes.")
@click.option("--only", type=click.Choice(["runs", "steps"]), help="Measure whole runs only, or single steps only.")
@click.option("--compile", "compiled", is_flag=True, help="Also by torch.compile, in the place of our own functions.")
@json_option
@device_option
def tuning(
    recipe_path: str,
    overrides: dict[str, Any],
    seeds: list[int] | None,
    rounds: int,
    only: str | None,
    compiled: bool,
    as_json: bool,
    device: str,
) -> None:
    """Compare ways of tuning RECIPE (recipes/ner-lora.yaml), side by side.

    Whole runs, each in a fresh process: first as plain Transformers + PEFT would go about it, then with one thing after
    another left to peftlab, and last the recipe as it stands. And single training steps of 32 × 64 tokens, beside the
    least they can take: one forward and one activation backward of the frozen base. Nothing is published.
    """
    from peftlab.bench import compare_ways, conditions, summarize, time_steps, ways_of_tuning
    from peftlab.bench.tuning import PLAIN

    runs: list[TimedRun] = []
    steps: list[StepTime] = []
    with bar_for("tuning", quiet=as_json) as told:
        if only != "steps":
            ways = ways_of_tuning(compiled=compiled)
            runs = compare_ways(recipe_path, overrides=overrides, ways=ways, seeds=seeds, device=device, told=told)
        if only != "runs":
            steps = time_steps(recipe_path, overrides=overrides, rounds=rounds, device=device, compiled=compiled)
    summaries = summarize(runs, PLAIN)
    if as_json:
        measured = {"runs": _plain(runs), "ways": _plain(summaries), "steps": _plain(steps)}
        click.echo(json.dumps({"recipe": recipe_path, **asdict(conditions()), **measured}, ensure_ascii=False))
        return
    out.print(escape(f"{recipe_path}\n{conditions()}"))
    if summaries:
        print_ways(summaries)
    if steps:
        print_steps(steps)


@bench.command()
@click.argument("base", metavar="[BASE]", default="sentence-transformers/all-MiniLM-L6-v2")
@click.option("--adapters", "counts", default="1,4,16,32", show_default=True, callback=read_counts, help="In a batch.")
@click.option(
    "--method", default="{type: lora, r: 8}", show_default=True, callback=read_section, help="As in a recipe, in YAML."
)
@click.option("--rows", default=32, show_default=True, type=click.IntRange(min=1), help="Rows of a batch.")
@click.option("--tokens", default=64, show_default=True, type=click.IntRange(min=1), help="Tokens of a row.")
@click.option(
    "--rounds", default=15, show_default=True, type=click.IntRange(min=1), help="Batches that each way takes."
)
@click.option("--precision", default="fp32", show_default=True, type=click.Choice(["fp32", "bf16"]))
@click.option(
    "--registered", default="1,100", show_default=True, callback=read_counts, help="Adapters in memory at loads."
)
@click.option("--only", type=click.Choice(["batches", "loads"]), help="Measure mixed batches only, or loading only.")
@json_option
@device_option
def runtime(
    base: str,
    counts: list[int],
    method: dict[str, Any],
    rows: int,
    tokens: int,
    rounds: int,
    precision: str,
    registered: list[int],
    only: str | None,
    as_json: bool,
    device: str,
) -> None:
    """Serve many adapters from one BASE: mixed batches beside the bare base and plain PEFT, and loading.

    Adapters are of random numbers, published and loaded as tuned ones are. Rows of a batch are shared out evenly among
    1, 4, 16, … of them. BASE is as `base.model` of a recipe. With --json, one object with `ratio_to_base` by case.
    """
    from peftlab.bench import conditions, time_batches, time_loading

    asked: dict[str, Any] = {"method": method, "device": device}
    batches: list[BatchTime] = []
    loads: list[LoadTime] = []
    plain = asked["method"].get("type", "lora") == "lora"
    with bar_for("measuring", quiet=as_json):
        if only != "loads":
            sizes: dict[str, Any] = {"rows": rows, "tokens": tokens, "rounds": rounds}
            batches = time_batches(base, counts=counts, precision=precision, plain=plain, **sizes, **asked)
        if only != "batches":
            loads = time_loading(base, registered=registered, **asked)
    if as_json:
        measured = {
            "ratio_to_base": {batch.case: batch.ratio for batch in batches},
            "seconds": {batch.case: batch.seconds for batch in batches},
            "loads": [asdict(load) for load in loads],
        }
        sizes = {"rows": rows, "tokens": tokens, "precision": precision}
        told = {"base": base, "method": asked["method"], **sizes, **asdict(conditions()), **measured}
        click.echo(json.dumps(told, ensure_ascii=False))
        return
    out.print(escape(f"{base}, {json.dumps(method)}\n{conditions()}"))
    if batches:
        print_batches(batches, f"{rows} rows × {tokens} tokens, {precision}")
    if loads:
        print_loads(loads)


def print_batches(batches: "list[BatchTime]", title: str) -> None:
    """Mixed batches: ratios to the bare base."""
    made = table(f"\nA batch of {title}", "way", "adapters", "time ÷ bare base", "milliseconds")
    for batch in batches:
        count = str(batch.adapters) if batch.adapters else "–"
        made.add_row(batch.way, count, f"{batch.ratio:.2f}", f"{batch.seconds * 1000:.0f}")
    out.print(made)
    out.print("bare base: with one head. plain PEFT: `adapter_names`.", style="dim")


def print_loads(loads: "list[LoadTime]") -> None:
    """Loading, by how many adapters are in memory."""
    made = table("\nBringing an adapter", "in memory", "from disk, ms", "÷ first", "growing, ms", "ready already, ms")
    for load in loads:
        disk, growing, ready = f"{load.from_disk * 1000:.1f}", f"{load.growing * 1000:.1f}", f"{load.ready * 1000:.3f}"
        made.add_row(str(load.registered), disk, f"{load.ratio:.2f}", growing, ready)
    out.print(made)
    out.print(
        "From disk: every byte verified, read, and ready to answer, into memory that another adapter left;"
        " growing: into memory that the system gives first.",
        style="dim",
    )


def _plain(measured: "Sequence[TimedRun | Summary | StepTime]") -> list[dict[str, Any]]:
    return [asdict(item) for item in measured]


def print_ways(ways: "list[Summary]") -> None:
    """Whole runs: ratios to the first way and to the one above, and where the time goes."""
    from peftlab.bench.step_time import COMPILED

    made = table("\nWhole runs", "way", "time ÷ plain", "÷ above", "memory ÷ plain", "score", "seconds")
    for above, way in zip([ways[0], *ways], ways, strict=False):
        made.add_row(
            way.way,
            f"{way.ratio:.2f}",
            f"{way.ratio / above.ratio:.2f}",
            f"{way.peak_ratio:.2f}" if way.peak_ratio else "unknown",
            cell(way.score) + (f" ± {way.score_sd:.3f}" if way.score_sd is not None else ""),
            f"{way.seconds:.1f}",
        )
    out.print(made)
    as_it_stands = [way.way for way in ways if way.way != COMPILED][-1]
    out.print(f"The way named {as_it_stands} is the recipe as it stands.", style="dim")
    parts = table("\nWhere the time goes, as shares of plain's whole time", "way", *ways[0].parts)
    for way in ways:
        parts.add_row(way.way, *(f"{share:.2f}" for share in way.parts.values()))
    out.print(parts)


def print_steps(steps: "list[StepTime]") -> None:
    """Single steps: ratios to the limit."""
    made = table("\nSteps of 32 × 64 tokens", "way", "time ÷ limit", "precision", "dropout", "milliseconds")
    for step in steps:
        made.add_row(step.way, f"{step.ratio:.2f}", step.precision, step.dropout, f"{step.seconds * 1000:.0f}")
    out.print(made)
    out.print("limit: one forward and one activation backward of the frozen base alone.", style="dim")

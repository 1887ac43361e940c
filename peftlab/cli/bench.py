"""`peftlab bench tuning | runtime`."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click
from rich.markup import escape

from peftlab.bench import (
    BatchTime,
    LoadTime,
    RunTime,
    StepTime,
    Summary,
    benchmark_environment,
    compare_setups,
    summarize,
    time_batches,
    time_loading,
    time_steps,
    tuning_setups,
)
from peftlab.bench.runtime import BASE_MODEL as BASE_MODEL_SETUP
from peftlab.bench.step_time import COMPILED
from peftlab.bench.tuning import PLAIN
from peftlab.cli.console import bar_for, cell, out, table
from peftlab.cli.help_layout import Command, Group, argument, option
from peftlab.cli.options import (
    device_option,
    json_option,
    override_option,
    parse_counts,
    parse_section,
    parse_seeds,
    refuse_options,
)

BATCHES, LOADING = "Mixed batches", "Loading"


@click.group(cls=Group, sections={"Commands": ["tuning", "runtime"]}, example="peftlab bench runtime --only batches")
def bench() -> None:
    """Measure speed on this machine.

    All alternatives are measured in the same run and reported as ratios.
    """


@bench.command(cls=Command, example="peftlab bench tuning recipes/ner-lora.yaml --only steps")
@argument(
    "recipe_path",
    metavar="[RECIPE]",
    default="recipes/ner-lora.yaml",
    description="Recipe, a YAML file; default: recipes/ner-lora.yaml.",
)
@override_option
@option(
    "--seeds",
    metavar="N,N…",
    callback=parse_seeds,
    help="Seeds of the whole runs: every setup runs once per seed. Default: the seed of the recipe.",
)
@option(
    "--rounds",
    "num_repeats",
    default=10,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of measured single steps of every setup.",
)
@option("--only", type=click.Choice(["runs", "steps"]), help="Measure only whole runs, or only single steps.")
@option("--compile", "compiled", is_flag=True, help="Measure torch.compile too, instead of peftlab's own functions.")
@json_option
@device_option
@click.pass_context
def tuning(
    ctx: click.Context,
    recipe_path: str,
    overrides: dict[str, Any],
    seeds: list[int] | None,
    num_repeats: int,
    only: str | None,
    compiled: bool,
    as_json: bool,
    device: str,
) -> None:
    """Compare the speed of tuning with plain Transformers and PEFT.

    Whole runs start in a fresh process each. The first setup is plain Transformers + PEFT; every next setup
    turns on one more optimization, and the last one is the unchanged recipe.

    Single training steps have 32 × 64 tokens. They are compared with a lower limit: one forward and one
    activation backward of the frozen base model. Nothing is published.
    """
    _check_only(ctx, only, {"runs": ("seeds",), "steps": ("num_repeats",)})
    runs: list[RunTime] = []
    steps: list[StepTime] = []
    with bar_for("tuning", quiet=as_json) as on_progress:
        if only != "steps":
            runs = compare_setups(
                recipe_path,
                overrides=overrides,
                setups=tuning_setups(compiled=compiled),
                seeds=seeds,
                device=device,
                on_progress=on_progress,
            )
        if only != "runs":
            steps = time_steps(
                recipe_path, overrides=overrides, num_repeats=num_repeats, device=device, compiled=compiled
            )
    summaries = summarize(runs, PLAIN)
    if as_json:
        results = {"runs": _as_dicts(runs), "ways": _as_dicts(summaries), "steps": _as_dicts(steps)}
        fields = {"recipe": recipe_path, **asdict(benchmark_environment()), **results}
        click.echo(json.dumps(fields, ensure_ascii=False))
        return
    out.print(escape(f"{recipe_path}\n{benchmark_environment()}"))
    if summaries:
        print_runs(summaries)
    if steps:
        print_steps(steps)


@bench.command(cls=Command, example="peftlab bench runtime --adapters 1,8 --rows 16")
@argument(
    "base",
    metavar="[BASE]",
    default="sentence-transformers/all-MiniLM-L6-v2",
    description="Base model, as `base.model` of a recipe; default: sentence-transformers/all-MiniLM-L6-v2.",
)
@option(
    "--method",
    default="{type: lora, r: 8}",
    show_default=True,
    metavar="YAML",
    callback=parse_section,
    help="Method of the adapters, as `method` of a recipe.",
)
@option("--only", type=click.Choice(["batches", "loads"]), help="Measure only mixed batches, or only loading.")
@option(
    "--adapters",
    "counts",
    default="1,4,16,32",
    show_default=True,
    metavar="N,N…",
    callback=parse_counts,
    section=BATCHES,
    help="Numbers of different adapters in a batch.",
)
@option(
    "--rows",
    default=32,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    section=BATCHES,
    help="Rows of a batch.",
)
@option(
    "--tokens",
    default=64,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    section=BATCHES,
    help="Tokens of a row.",
)
@option(
    "--rounds",
    "num_repeats",
    default=15,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    section=BATCHES,
    help="Number of measured batches of every setup.",
)
@option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice(["fp32", "bf16"]),
    section=BATCHES,
    help="Floating-point type of the base model.",
)
@option(
    "--registered",
    default="1,100",
    show_default=True,
    metavar="N,N…",
    callback=parse_counts,
    section=LOADING,
    help="Numbers of adapters in memory while another one is loaded.",
)
@json_option
@device_option
@click.pass_context
def runtime(
    ctx: click.Context,
    base: str,
    counts: list[int],
    method: dict[str, Any],
    rows: int,
    tokens: int,
    num_repeats: int,
    precision: str,
    registered: list[int],
    only: str | None,
    as_json: bool,
    device: str,
) -> None:
    """Measure prediction and loading with many adapters.

    A mixed batch has rows of 1, 4, 16, … different adapters; it is
    compared with the base model alone and with plain PEFT. The adapters have random weights.

    With --json, one object is printed; its `ratio_to_base` has a ratio for each case.
    """
    _check_only(
        ctx, only, {"batches": ("counts", "rows", "tokens", "num_repeats", "precision"), "loads": ("registered",)}
    )
    settings: dict[str, Any] = {"method": method, "device": device}
    sizes: dict[str, Any] = {"rows": rows, "tokens": tokens, "precision": precision}
    batches: list[BatchTime] = []
    loads: list[LoadTime] = []
    with bar_for("measuring", quiet=as_json):
        if only != "loads":
            batches = time_batches(base, counts=counts, num_repeats=num_repeats, **sizes, **settings)
        if only != "batches":
            loads = time_loading(base, registered=registered, **settings)
    if as_json:
        results = {
            "ratio_to_base": {batch.case: batch.ratio for batch in batches},
            "seconds": {batch.case: batch.seconds for batch in batches},
            "loads": _as_dicts(loads),
        }
        fields = {"base": base, "method": method, **sizes, **asdict(benchmark_environment()), **results}
        click.echo(json.dumps(fields, ensure_ascii=False))
        return
    out.print(escape(f"{base}, {json.dumps(method)}\n{benchmark_environment()}"))
    if batches:
        print_batches(batches, f"{rows} rows × {tokens} tokens, {precision}")
    if loads:
        print_loads(loads)


def print_batches(batches: list[BatchTime], title: str) -> None:
    """Print the times of mixed batches, as ratios to the base model."""
    rendered = table(f"\nA batch of {title}", "setup", "adapters", "time ÷ base model", "milliseconds")
    for batch in batches:
        count = str(batch.adapters) if batch.adapters else "–"
        name = "base model" if batch.way == BASE_MODEL_SETUP else batch.way
        rendered.add_row(name, count, f"{batch.ratio:.2f}", f"{batch.seconds * 1000:.0f}")
    out.print(rendered)
    out.print("base model: without adapters, with one head. plain PEFT: with `adapter_names`.", style="dim")


def print_loads(loads: list[LoadTime]) -> None:
    """Print the times of loading an adapter, by the number of adapters in memory."""
    columns = ("in memory", "from disk, ms", "÷ first", "growing, ms", "cached, ms")
    rendered = table("\nLoading an adapter", *columns)
    for load in loads:
        disk, growing, cached = f"{load.from_disk * 1000:.1f}", f"{load.growing * 1000:.1f}", f"{load.ready * 1000:.3f}"
        rendered.add_row(str(load.registered), disk, f"{load.ratio:.2f}", growing, cached)
    out.print(rendered)
    out.print(
        "From disk: all bytes are verified and loaded into memory that a removed adapter has freed."
        " Growing: into newly allocated memory. Cached: the adapter is already in memory.",
        style="dim",
    )


def print_runs(summaries: list[Summary]) -> None:
    """Print the times of whole runs, as ratios to the first setup and to the one above, and the time of each part."""
    rendered = table("\nWhole runs", "setup", "time ÷ plain", "÷ above", "memory ÷ plain", "score", "seconds")
    for above, summary in zip([summaries[0], *summaries], summaries, strict=False):
        rendered.add_row(
            summary.way,
            f"{summary.ratio:.2f}",
            f"{summary.ratio / above.ratio:.2f}",
            f"{summary.peak_ratio:.2f}" if summary.peak_ratio else "unknown",
            cell(summary.score) + (f" ± {summary.score_sd:.3f}" if summary.score_sd is not None else ""),
            f"{summary.seconds:.1f}",
        )
    out.print(rendered)
    last = [summary.way for summary in summaries if summary.way != COMPILED][-1]
    out.print(f"The setup {last} is the unchanged recipe.", style="dim")
    parts = table("\nTime of each part ÷ time of the plain run", "setup", *summaries[0].parts)
    for summary in summaries:
        parts.add_row(summary.way, *(f"{ratio:.2f}" for ratio in summary.parts.values()))
    out.print(parts)


def print_steps(steps: list[StepTime]) -> None:
    """Print the times of single steps, as ratios to the limit."""
    rendered = table("\nSteps of 32 × 64 tokens", "setup", "time ÷ limit", "precision", "dropout", "milliseconds")
    for step in steps:
        rendered.add_row(step.way, f"{step.ratio:.2f}", step.precision, step.dropout, f"{step.seconds * 1000:.0f}")
    out.print(rendered)
    out.print("limit: one forward and one activation backward of the frozen base model alone.", style="dim")


def _check_only(ctx: click.Context, only: str | None, options: dict[str, tuple[str, ...]]) -> None:
    """Refuse options of the measurement that --only leaves out; `options` has the names for each choice of --only."""
    for choice, names in options.items():
        if only not in (None, choice):
            refuse_options(ctx, names, f"has no effect with --only {only}.")


def _as_dicts(results: Sequence[RunTime | Summary | StepTime | LoadTime]) -> list[dict[str, Any]]:
    return [asdict(result) for result in results]

"""`peftlab evaluate`."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from peftlab.cli.adapter_names import check_adapter_source, resolve_tasks
from peftlab.cli.console import bar_for, out, print_notes, score_tables, scores_by_adapter
from peftlab.cli.heavy import runtime
from peftlab.cli.help_layout import Command, argument, option
from peftlab.cli.options import (
    OUTPUT,
    ROWS,
    by_option,
    columns_option,
    device_option,
    format_option,
    group_by_option,
    json_option,
    memory_option,
    parse_names,
    precision_option,
    quantization_option,
    slots_option,
    store_option,
    trust_option,
)

if TYPE_CHECKING:
    from peftlab.runtime import Answer, Evaluation, MixedEvaluation
    from peftlab.tasks import Prediction


@click.command(cls=Command, example="peftlab evaluate sentiment-films --data reviews.csv --column label=stars")
@argument(
    "adapter",
    metavar="[ADAPTER]",
    required=False,
    description="Adapter, as name, name@version, or a stack lower+top of two adapters.",
)
@option("--data", required=True, metavar="FILE", section=ROWS, help="File of labelled rows.")
@by_option
@format_option
@columns_option
@option(
    "--header",
    metavar="NAME,NAME…",
    callback=parse_names,
    section=ROWS,
    help="Column names of a csv or tsv file that has no header line.",
)
@option(
    "--encoding",
    default="utf-8",
    show_default=True,
    metavar="NAME",
    section=ROWS,
    help="Character encoding of FILE.",
)
@group_by_option
@option(
    "--drop-blank",
    is_flag=True,
    section=ROWS,
    help="Leave out, and count, rows without text or without a label (empty, null, - or -1).",
)
@option(
    "--predictions",
    metavar="FILE",
    section=OUTPUT,
    help="Write the prediction for each row to FILE, as JSON lines.",
)
@json_option
@store_option
@device_option
@quantization_option
@precision_option
@memory_option
@slots_option
@trust_option
def evaluate(
    adapter: str | None,
    data: str,
    by: str | None,
    predictions: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Score an adapter on labelled rows.

    The predictions are those of `peftlab predict`.
    With --by, the rows of FILE belong to several adapters, and each adapter gets its own score.
    """
    check_adapter_source(by, adapter)
    if predictions and not Path(predictions).absolute().parent.is_dir():  # reported before the work, not after it
        raise click.UsageError(
            f"{predictions} cannot be written: the folder {Path(predictions).parent} does not exist."
        )
    if by:
        _evaluate_mixed(data, by, predictions, as_json, settings)
    else:
        resolve_tasks([str(adapter)], settings["store"])
        _evaluate_one(str(adapter), data, predictions, as_json, settings)


def _evaluate_one(adapter: str, data: str, predictions: str | None, as_json: bool, settings: dict[str, Any]) -> None:
    with bar_for("evaluating", quiet=as_json) as on_progress:
        result = runtime.evaluate(adapter, data, on_progress=on_progress, **settings)
    print_notes(result.warnings)
    if predictions:
        _write(result.predictions, predictions)
    if as_json:
        click.echo(json.dumps(_as_json(result, data), ensure_ascii=False))
    else:
        _print_evaluation(result, data)


def _evaluate_mixed(data: str, by: str, predictions: str | None, as_json: bool, settings: dict[str, Any]) -> None:
    with bar_for("evaluating", quiet=as_json) as on_progress:
        result = runtime.evaluate_mixed(data, by=by, on_progress=on_progress, **settings)
    print_notes(result.warnings)
    if predictions:
        _write(result.answers, predictions)
    if as_json:
        by_adapter = {name: _as_json(evaluation, data) for name, evaluation in result.by_adapter.items()}
        click.echo(json.dumps(by_adapter, ensure_ascii=False))
    else:
        _print_evaluations(result, data)


def _write(predictions: "Iterable[Prediction | Answer]", file: str) -> None:
    lines = (json.dumps(prediction.as_dict(), ensure_ascii=False) for prediction in predictions)
    Path(file).write_text("".join(f"{line}\n" for line in lines), encoding="utf8")


def _as_json(result: "Evaluation", data: str) -> dict[str, Any]:
    fields = {"adapter": result.name, "data": data, "rows": result.ledger.used}
    return {**fields, "scores": result.scores.as_dict()}


def _print_evaluation(result: "Evaluation", data: str) -> None:
    ledger = result.ledger
    out.print(f"{ledger.used:,} rows with {ledger.targets:,} {result.task.targets.noun}, through {result.name}\n")
    for warning, count in {**ledger.dropped, **ledger.warnings}.items():
        out.print(f"  {count} × {warning}", style="dim")
    out.print(score_tables(f"Scores on {data}", result.scores))


def _print_evaluations(result: "MixedEvaluation", data: str) -> None:
    """Print one line of scores per adapter, in the order in which the rows name them."""
    evaluated = result.by_adapter
    noun = "adapters" if len(evaluated) > 1 else "adapter"
    out.print(f"{len(result.answers):,} rows, through {len(evaluated):,} {noun} on one base model\n")
    for name, evaluation in evaluated.items():
        for warning, count in {**evaluation.ledger.dropped, **evaluation.ledger.warnings}.items():
            out.print(f"  {name}: {count} × {warning}", style="dim")
    out.print(scores_by_adapter(f"Scores on {data}", evaluated))

"""`peftlab evaluate`."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from peftlab.cli.options import (
    by_option,
    columns_option,
    device_option,
    format_option,
    json_option,
    memory_option,
    precision_option,
    quantization_option,
    slots_option,
    store_option,
    trust_option,
)
from peftlab.cli.predict import refuse_beside, resolve_first

if TYPE_CHECKING:
    from peftlab.runtime import Answer, Evaluation, MixedEvaluation
    from peftlab.tasks import Prediction


@click.command()
@click.argument("adapter", metavar="[ADAPTER]", required=False)
@click.option("--data", required=True, metavar="FILE", help="Labelled rows, in any format that a recipe takes.")
@by_option
@format_option
@columns_option
@click.option("--header", metavar="NAME,NAME…", help="Column names of a csv or tsv file without a header line.")
@click.option("--encoding", default="utf-8", show_default=True, help="Encoding of FILE.")
@click.option("--predictions", metavar="FILE", help="Write the prediction for each row to FILE, as JSON lines.")
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
    header: str | None,
    predictions: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Score ADAPTER on labelled rows: the predictions that `peftlab predict` gives, held against the labels.

    ADAPTER is a name, or name@version, or lower+top, one on top of the other.

    With --by, the rows of FILE are those of several adapters, and each is scored on its own.
    """
    refuse_beside(by, adapter)
    if predictions and not Path(predictions).absolute().parent.is_dir():  # told before the work, not after it
        raise click.UsageError(f"{predictions} cannot be written: there is no folder {Path(predictions).parent}.")
    settings["header"] = [name.strip() for name in header.split(",")] if header else None
    if by:
        _evaluate_mixed(data, by, predictions, as_json, settings)
    else:
        resolve_first([str(adapter)], settings["store"])
        _evaluate_one(str(adapter), data, predictions, as_json, settings)


def _evaluate_one(adapter: str, data: str, predictions: str | None, as_json: bool, settings: dict[str, Any]) -> None:
    from peftlab.cli.console import bar_for, print_notes
    from peftlab.runtime import evaluate as run

    with bar_for("evaluating", quiet=as_json) as told:
        result = run(adapter, data, told=told, **settings)
    print_notes(result.notes)
    if predictions:
        _write(result.predictions, predictions)
    if as_json:
        click.echo(json.dumps(_described(result, data), ensure_ascii=False))
    else:
        _print_evaluation(result, data)


def _evaluate_mixed(data: str, by: str, predictions: str | None, as_json: bool, settings: dict[str, Any]) -> None:
    from peftlab.cli.console import bar_for, print_notes
    from peftlab.runtime import evaluate_mixed as run

    with bar_for("evaluating", quiet=as_json) as told:
        result = run(data, by=by, told=told, **settings)
    print_notes(result.notes)
    if predictions:
        _write(result.answers, predictions)
    if as_json:
        described = {name: _described(mine, data) for name, mine in result.by_adapter.items()}
        click.echo(json.dumps(described, ensure_ascii=False))
    else:
        _print_evaluations(result, data)


def _write(predictions: "Iterable[Prediction | Answer]", file: str) -> None:
    lines = (json.dumps(prediction.as_dict(), ensure_ascii=False) for prediction in predictions)
    Path(file).write_text("".join(f"{line}\n" for line in lines), encoding="utf8")


def _described(result: "Evaluation", data: str) -> dict[str, Any]:
    described = {"adapter": result.name, "data": data, "rows": result.ledger.used}
    return {**described, "scores": result.scores.as_dict()}


def _print_evaluation(result: "Evaluation", data: str) -> None:
    from peftlab.cli.console import out, score_tables

    ledger = result.ledger
    out.print(f"{ledger.used:,} rows with {ledger.targets:,} {result.task.targets}, through {result.name}\n")
    for what, count in ledger.warnings.items():
        out.print(f"  {count} × {what}", style="dim")
    out.print(score_tables(f"Scores on {data}", result.scores))


def _print_evaluations(result: "MixedEvaluation", data: str) -> None:
    """A line for each adapter, in the order in which they come in the rows."""
    from peftlab.cli.console import out, scores_by_adapter

    evaluated = result.by_adapter
    several = "adapters" if len(evaluated) > 1 else "adapter"
    out.print(f"{len(result.answers):,} rows, through {len(evaluated):,} {several} on one base\n")
    for name, mine in evaluated.items():
        for what, count in mine.ledger.warnings.items():
            out.print(f"  {name}: {count} × {what}", style="dim")
    out.print(scores_by_adapter(f"Scores on {data}", evaluated))

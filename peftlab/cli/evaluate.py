"""`peftlab evaluate`."""

import json
from pathlib import Path
from typing import Any

import click

from peftlab.cli.options import (
    columns_option,
    device_option,
    format_option,
    json_option,
    quantization_option,
    store_option,
    trust_option,
)


@click.command()
@click.argument("adapter")
@click.option("--data", required=True, metavar="FILE", help="Labelled rows, in any format that a recipe takes.")
@format_option
@columns_option
@click.option("--header", metavar="NAME,NAME…", help="Column names of a csv or tsv file without a header line.")
@click.option("--encoding", default="utf-8", show_default=True, help="Encoding of FILE.")
@click.option("--predictions", metavar="FILE", help="Write the prediction for each row to FILE, as JSON lines.")
@json_option
@store_option
@device_option
@quantization_option
@trust_option
def evaluate(
    adapter: str,
    data: str,
    data_format: str,
    columns: dict[str, str],
    header: str | None,
    encoding: str,
    predictions: str | None,
    as_json: bool,
    store: str,
    device: str,
    quantization: str | None,
    trust_remote_code: bool,
) -> None:
    """Score ADAPTER on labelled rows: the predictions that `peftlab predict` gives, held against the labels."""
    from peftlab.cli.predict import resolve_first

    if predictions and not Path(predictions).absolute().parent.is_dir():  # told before the work, not after it
        raise click.UsageError(f"{predictions} cannot be written: there is no folder {Path(predictions).parent}.")

    resolve_first([adapter], store)

    from peftlab.cli.display import bar_for, out, print_notes, score_tables
    from peftlab.runtime import evaluate as run

    settings: dict[str, Any] = {"quantization": quantization, "trust_remote_code": trust_remote_code}
    with bar_for("evaluating", quiet=as_json) as told:
        result = run(
            adapter,
            data,
            data_format=data_format,
            columns=columns,
            header=[name.strip() for name in header.split(",")] if header else None,
            encoding=encoding,
            store=store,
            device=device,
            told=told,
            **settings,
        )
    print_notes(result.notes)
    if predictions:
        lines = (json.dumps(prediction.as_dict(), ensure_ascii=False) for prediction in result.predictions)
        Path(predictions).write_text("".join(f"{line}\n" for line in lines), encoding="utf8")
    if as_json:
        described = {"adapter": str(result.adapter), "data": data, "rows": result.ledger.used}
        click.echo(json.dumps({**described, "scores": result.scores.as_dict()}, ensure_ascii=False))
        return
    out.print(
        f"{result.ledger.used:,} rows with {result.ledger.targets:,} {result.task.targets}, through {result.adapter}\n"
    )
    for what, count in result.ledger.notes.items():
        out.print(f"  {count} × {what}", style="dim")
    out.print(score_tables(f"Scores on {data}", result.scores))

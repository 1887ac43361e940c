"""A benchmark's outcome: printed as a table, and kept in benchmarks/results/ with its date, versions and conditions."""

import os
from pathlib import Path
from typing import Any

import click

from peftlab.bench import conditions as measured_under

FOLDER = Path(__file__).parent / "results"


def data_folder() -> Path:
    """$PEFTLAB_DATA, or ../shared/data beside the repository; a benchmark without it stops with that reason."""
    folder = Path(os.environ.get("PEFTLAB_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        raise click.ClickException(f"no data in {folder}; set PEFTLAB_DATA to the folder that holds it.")
    return folder


def write_result(name: str, title: str, rows: list[dict[str, Any]], conditions: str) -> Path:
    """Print `rows` (which share their keys) as a Markdown table, and write it with the conditions."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([_cell(row[column]) for column in columns] for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    here = measured_under()
    file = FOLDER / f"{here.date}-{name}.md"
    FOLDER.mkdir(exist_ok=True)
    file.write_text(f"# {title}\n\n{here}\n\n{conditions.strip()}\n\n{table}\n", encoding="utf8")
    click.echo(f"\n{title}\n\n{table}\n\nwritten to {file}")
    return file


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)

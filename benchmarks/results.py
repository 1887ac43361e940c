"""A benchmark's outcome: printed as a table, and kept in benchmarks/results/ with its date, versions and conditions."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from peftlab.bench import benchmark_environment as measured_under

FOLDER = Path(__file__).parent / "results"
Run = TypeVar("Run")


def data_folder() -> Path:
    """$PEFTLAB_DATA, or ../shared/data beside the repository; a benchmark without it stops with that reason."""
    folder = Path(os.environ.get("PEFTLAB_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        raise click.ClickException(f"no data in {folder}; set PEFTLAB_DATA to the folder that holds it.")
    return folder


def runs_done(name: str, kind: type[Run]) -> list[Run]:
    """What `note_run` noted under that name, in any session, as objects of the dataclass `kind`."""
    file = _runs_file(name)
    lines = file.read_text(encoding="utf8").splitlines() if file.exists() else []
    return [kind(**json.loads(line)) for line in lines]


def note_run(name: str, run: Any) -> None:
    """Note a run that took long, a dataclass: one line of benchmarks/results/NAME.jsonl; several processes may."""
    with _runs_file(name).open("a", encoding="utf8") as file:
        file.write(json.dumps(asdict(run)) + "\n")


def _runs_file(name: str) -> Path:
    return FOLDER / f"{name}.jsonl"


def write_result(name: str, title: str, rows: list[dict[str, Any]], benchmark_environment: str) -> Path:
    """Print `rows` (which share their keys) as a Markdown table, and write it with the conditions."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([_cell(row[column]) for column in columns] for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    here = measured_under()
    file = FOLDER / f"{here.date}-{name}.md"
    FOLDER.mkdir(exist_ok=True)
    file.write_text(f"# {title}\n\n{here}\n\n{benchmark_environment.strip()}\n\n{table}\n", encoding="utf8")
    click.echo(f"\n{title}\n\n{table}\n\nwritten to {file}")
    return file


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)

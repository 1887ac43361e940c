"""Print the results of a benchmark, and store them in benchmarks/results/ with date, versions and conditions."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from peftlab.bench import benchmark_environment as measured_under

FOLDER = Path(__file__).parent / "results"
FILE_KEYS = {"candidate": "contender"}
"""Field of a run → its key in the result files, where they differ."""
Run = TypeVar("Run")


def data_folder() -> Path:
    """$PEFTLAB_DATA, or ../shared/data beside the repository.

    Raises:
        ClickException: the folder does not exist.
    """
    folder = Path(os.environ.get("PEFTLAB_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        raise click.ClickException(f"no data in {folder}; set PEFTLAB_DATA to the data folder.")
    return folder


def load_runs(name: str, run_type: type[Run]) -> list[Run]:
    """The runs that `append_run` stored under that name, as objects of the dataclass `run_type`."""
    file = _runs_file(name)
    lines = file.read_text(encoding="utf8").splitlines() if file.exists() else []
    fields = {key: field for field, key in FILE_KEYS.items()}
    runs = (json.loads(line) for line in lines)
    return [run_type(**{fields.get(key, key): value for key, value in run.items()}) for run in runs]


def append_run(name: str, run: Any) -> None:
    """Append a run, a dataclass, as one line to benchmarks/results/NAME.jsonl. Several processes may append."""
    with _runs_file(name).open("a", encoding="utf8") as file:
        file.write(json.dumps({FILE_KEYS.get(field, field): value for field, value in asdict(run).items()}) + "\n")


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

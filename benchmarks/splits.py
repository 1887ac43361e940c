"""Write the splits of a data set as JSON lines files, so that all compared programs use the same rows."""

import json
from pathlib import Path
from typing import Any

from peftlab.data import load_rows
from peftlab.errors import ErrorCollector
from peftlab.recipe import DataSection


def write_splits(section: dict[str, Any], folder: Path) -> dict[str, str]:
    """Write the rows of a recipe's data section to `folder`; return the data section for these files."""
    with ErrorCollector() as errors:
        rows = load_rows(DataSection.model_validate(section), errors)
    files = {}
    for name, split in rows:
        file = folder / f"{name}.jsonl"
        lines = (json.dumps(row.fields, ensure_ascii=False) for row in split.rows)
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf8")
        files[name] = str(file)
    kept = {key: section[key] for key in ("max_length", "max_lost") if key in section}
    return files | kept

"""Shuffle rows of several data sets into one file, each with the adapter that it is for: `python recipes/data/mix.py`.

Four domains of sentiment, two of entities and one of questions: 2,000 rows of recipes/data, in the columns of their
tasks and with one more, `adapter`. Most were trained on: the file shows that each row finds its own adapter, not how
good these are.
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftlab.data import load_rows
from peftlab.errors import ErrorCollector
from peftlab.recipe import read_recipe

RECIPES = Path(__file__).parents[1]
ADAPTERS = {
    "sentiment-shop": "sentiment-shop",
    "sentiment-stays": "sentiment-stays",
    "sentiment-eats": "sentiment-eats",
    "sentiment-films": "sentiment-films",
    "ner-news": "ner-lora",
    "ner-clinic": "ner-clinic",
    "qa-notices": "qa-notices",
}
ROWS = 2000


def rows_of(recipe_name: str) -> Iterator[dict[str, Any]]:
    """All rows of a recipe's data, test rows first."""
    with ErrorCollector() as errors:
        rows = load_rows(read_recipe(RECIPES / f"{recipe_name}.yaml").data, errors)
    for split in ("test", "validation", "train"):
        yield from (row.fields for row in rows.splits[split].rows)


def main() -> None:
    """Write the file named, or mixed.jsonl."""
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "mixed.jsonl")
    sets = [[{"adapter": name, **row} for row in rows_of(recipe)] for name, recipe in ADAPTERS.items()]
    taken = [row for turn in zip(*(rows + [None] * ROWS for rows in sets), strict=False) for row in turn if row][:ROWS]
    random.Random(0).shuffle(taken)
    with target.open("w", encoding="utf8") as file:
        file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in taken)
    sys.stdout.write(f"{len(taken)} rows for {len(ADAPTERS)} adapters: {target}\n")


if __name__ == "__main__":
    main()

"""Continued pretraining on a domain, and warm starts from the domain adapter: `python -m benchmarks.domain`.

LoRA (r = 8 on every Linear, 256 tokens per chunk, learning rate 3e-3, 4 epochs) continues the pretraining of
stories260K (a Llama with 260,000 parameters, trained on TinyStories) on encyclopedia articles. The adapter `domain` is
trained on 50,000 characters of wikitext-2's validation split. Another 10,000 characters are a small domain: `small` is
trained on them alone, `started` is trained on them from the weights of `domain` (`method.start_from`). All are scored
on the first 20,000 characters of the test split; the vocabulary has 512 tokens. One seed. The data folder is
$PEFTLAB_DATA, or ../shared/data by default.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import click

import peftlab
from benchmarks.forgetting import paragraphs
from benchmarks.results import data_folder, write_result

TOKENS, EPOCHS, RATE = 256, 4, 3e-3
LARGE, SMALL, SCORED = (0, 50_000), (50_000, 60_000), (0, 20_000)


@click.command(help=__doc__)
def main() -> None:
    """Tune the three adapters, print and write the table."""
    data = data_folder()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_rows(data, work)
        rows = [_row("base", "none", evaluate_base(data, work))]
        for name, rows_of, start in (
            ("domain", "large", None),
            ("small", "small", None),
            ("started", "small", "domain"),
        ):
            tuned = peftlab.tune(_recipe(data, work, name, rows_of, start), store=work / "store", device="cpu")
            told = f"{rows_of}{', from the domain adapter' if start else ''}"
            rows.append(_row(name, told, tuned.scores["test"].values))
            click.echo(rows[-1])
    write_result("domain", "Continued pretraining on a domain", rows, __doc__ or "")


def write_rows(data: Path, folder: Path) -> None:
    """Write the texts, one paragraph per line."""
    source = data / "lm_wikitext2_validtest"
    for name, file, span in (
        ("large", "valid.txt", LARGE),
        ("small", "valid.txt", SMALL),
        ("scored", "test.txt", SCORED),
    ):
        (folder / f"{name}.txt").write_text("\n".join(paragraphs(source / file, *span)), encoding="utf8")


def _recipe(data: Path, folder: Path, name: str, rows: str, start: str | None) -> Path:
    sections: dict[str, Any] = {
        "name": name,
        "base": {"model": str(data / "stories260K")},
        "task": {"type": "domain-adaptation"},
        "method": {"type": "lora", "r": 8, "lora_alpha": 16, "start_from": start},
        "data": {"train": f"{rows}.txt", "validation": 0.1, "test": "scored.txt", "max_length": TOKENS},
        "training": {"learning_rate": RATE, "num_train_epochs": EPOCHS, "bf16": False},
    }
    recipe = folder / f"{name}.yaml"
    recipe.write_text(json.dumps(sections), encoding="utf8")  # JSON is YAML
    return recipe


def evaluate_base(data: Path, folder: Path) -> dict[str, float]:
    """Scores of the base model, computed with a newly initialized LoRA adapter, whose delta is 0."""
    from peftlab.tuning.evaluate import evaluate_split

    run = peftlab.check(_recipe(data, folder, "base", "small", None), device="cpu").run
    assert run is not None  # the base is a folder
    return evaluate_split(run, "test").values


def _row(name: str, learnt: str, scores: dict[str, float]) -> dict[str, Any]:
    return {"adapter": name, "learnt from": learnt, **{key: scores[key] for key in ("perplexity", "loss", "accuracy")}}


if __name__ == "__main__":
    main()

"""What an adapter learns of a domain, and what it is worth to start from: `python -m benchmarks.domain`.

stories260K (a Llama of 260,000 parameters, trained on TinyStories) goes on learning from encyclopedia articles by LoRA
(r = 8 on every Linear, 256 tokens a piece, learning rate 3e-3): `domain` on 50,000 characters of wikitext-2's
validation split, 4 epochs. Then other 10,000 characters of it stand for a small domain: learnt alone, and with
`method.start_from` the domain adapter, 4 epochs each. All are scored on the first 20,000 characters of the test split;
the whole vocabulary are 512 pieces of words. One seed. Data is looked for in $PEFTLAB_DATA, or else in ../shared/data.
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
    """Tune the three, print and write the table."""
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
    """The texts, a paragraph a line."""
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
    """Scores of the base as it is: those of a fresh LoRA, which does nothing yet."""
    from peftlab.tuning.evaluate import evaluate_split

    run = peftlab.check(_recipe(data, folder, "base", "small", None), device="cpu").run
    assert run is not None  # the base is a folder
    return evaluate_split(run, "test").values


def _row(name: str, learnt: str, scores: dict[str, float]) -> dict[str, Any]:
    return {"adapter": name, "learnt from": learnt, **{key: scores[key] for key in ("perplexity", "loss", "accuracy")}}


if __name__ == "__main__":
    main()

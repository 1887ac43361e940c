"""Compare the entity F1 of peftlab and of plain Transformers + PEFT on real data: `python -m benchmarks.ner_scores`.

Both use the same base, LoRA r=8 on every Linear, learning rate 1e-3, batch size 16, the best epoch by validation F1,
and no early stopping; CrossNER politics for 20 epochs and WNUT17 for 3, seeds as in the table. The data folder is
$PEFTLAB_DATA, or ../shared/data by default.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import click

import peftlab
from benchmarks.results import data_folder, write_result
from benchmarks.splits import write_splits

RECIPE = Path(__file__).parents[1] / "recipes" / "ner-lora.yaml"
SETS: dict[str, tuple[int, dict[str, str]]] = {
    "crossner-politics": (
        20,
        {
            "train": "ner_crossner/politics/train.txt",
            "validation": "ner_crossner/politics/dev.txt",
            "test": "ner_crossner/politics/test.txt",
        },
    ),
    "wnut17": (
        3,
        {
            "train": "ner_wnut17/wnut17train.conll",
            "validation": "ner_wnut17/emerging.dev.conll",
            "test": "ner_wnut17/emerging.test.annotated",
        },
    ),
}


@click.command(help=__doc__)
@click.option("--set", "names", multiple=True, type=click.Choice(list(SETS)), default=list(SETS))
@click.option("--seeds", default="1,2,3", show_default=True)
@click.option(
    "--by-hand/--no-by-hand",
    "build_with_peft",
    default=True,
    show_default=True,
    help="Also run plain Transformers + PEFT (plain_tuning.py).",
)
def main(names: tuple[str, ...], seeds: str, build_with_peft: bool) -> None:
    """Run both programs on each data set and seed; print and write a table for each set."""
    ways = {"peftlab": _ours, "by hand": _build_with_peft} if build_with_peft else {"peftlab": _ours}
    for name in names:
        epochs, files = SETS[name]
        splits = {split: data_folder() / file for split, file in files.items()}
        rows: list[dict[str, Any]] = []
        for seed in map(int, seeds.split(",")):
            rows.append({"set": name, "epochs": epochs, "seed": seed})
            for way, score in ways.items():
                rows[-1][way] = score(name, splits, epochs, seed)
                click.echo(f"{name}, seed {seed}, {way}: {rows[-1][way]:.4f}")
        means = {way: statistics.mean(row[way] for row in rows) for way in ways}
        rows.append({"set": name, "epochs": epochs, "seed": "mean", **means})
        write_result(f"ner-{name}", f"Test entity F1 by seqeval on words, {name}", rows, __doc__ or "")


def _ours(name: str, splits: dict[str, Path], epochs: int, seed: int) -> float:
    overrides = {
        "name": "benchmark",
        **{f"data.{split}": str(path) for split, path in splits.items()},
        "training.num_train_epochs": epochs,
        "training.learning_rate": 1e-3,
        "training.per_device_train_batch_size": 16,
        "training.early_stopping_patience": None,
        "training.seed": seed,
        "method.r": 8,
    }
    with tempfile.TemporaryDirectory() as store:
        return peftlab.tune(RECIPE, overrides=overrides, store=store).scores["test"].values["f1"]


def _build_with_peft(name: str, splits: dict[str, Path], epochs: int, seed: int) -> float:
    from benchmarks.plain_tuning import Settings, tune_with_trainer

    with tempfile.TemporaryDirectory() as folder:
        write_splits({split: str(path) for split, path in splits.items()}, Path(folder))
        settings = Settings(name, Path(folder), epochs=epochs, seed=seed, lora_dropout=0.0)
        return float(tune_with_trainer(settings)["scores"]["f1"])


if __name__ == "__main__":
    main()

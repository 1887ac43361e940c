"""Time with and without the cache for frozen layers, and equality of results: `python -m benchmarks.frozen_prefix`.

banking77 (77 intents, 10,003 training rows with a tenth of them for validation, 3,080 test rows) on all-MiniLM-L6-v2,
first with `training.frozen_cache`, then without. The time is that of a complete `tune`: reading, training, validation
after each epoch, scoring, publishing and the reload check. Python's imports are not included, because they are done
before and are the same for both. `head` trains the head only, `last` trains LoRA r=8 in the last of 6 layers. The
published weights are compared.
"""

import tempfile
from pathlib import Path
from typing import Any

import click
from safetensors.torch import load_file

import peftlab
from benchmarks.results import data_folder, write_result
from benchmarks.task_scores import FIXED, Epochs, banking77, by_key
from peftlab.cli.options import override_option
from peftlab.store import WEIGHTS_FILE

METHODS: dict[str, dict[str, Any]] = {
    "head": {"type": "head"},
    "last": {"type": "lora", "layers_to_transform": 5},
}


@click.command(help=__doc__)
@click.option("--method", "names", multiple=True, type=click.Choice(list(METHODS)), default=["head"], show_default=True)
@click.option("--epochs", default=10, show_default=True)
@override_option
def main(names: tuple[str, ...], epochs: int, overrides: dict[str, Any]) -> None:
    """Tune with and without the cache; print and write times, scores and the difference of the weights."""
    import peftlab.methods
    import peftlab.tuning.publish
    import peftlab.tuning.train  # noqa: F401  # all that `tune` imports

    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            results = [_tuned(Path(folder), name, epochs, cache, overrides) for cache in ("2GiB", None)]
            rows = [_row(name, epochs, results, i) for i in range(2)]
        changed = f"\n\nWith {overrides}." if overrides else ""
        title = f"Frozen layers once or in every epoch, {name}"
        write_result(f"frozen-prefix-{name}", title, rows, f"{__doc__}{changed}")


def _tuned(work: Path, method: str, epochs: int, cache: str | None, extra: dict[str, Any]) -> peftlab.TuningResult:
    sections = banking77(data_folder(), work)
    sections["training"] = {
        "learning_rate": 1e-3,
        "num_train_epochs": epochs,
        "early_stopping_patience": None,
        "frozen_cache": cache,
    }
    name = {"name": "with" if cache else "without"}
    overrides = by_key(sections) | FIXED | {"method": METHODS[method]} | name | extra
    (work / "recipe.yaml").write_text("name: benchmark\n", encoding="utf8")
    return peftlab.tune(work / "recipe.yaml", overrides=overrides, store=work / "store", progress=Notes())


class Notes(Epochs):
    """Print epochs and messages to standard error."""

    def info(self, message: str) -> None:
        """Print the message about the cache."""
        click.echo(message, err=True)


def _row(name: str, epochs: int, results: list[peftlab.TuningResult], i: int) -> dict[str, Any]:
    weights = [load_file(result.adapter.folder / WEIGHTS_FILE) for result in results]
    apart = max(float((weights[0][key] - weights[1][key]).abs().max()) for key in weights[0])
    return {
        "method": name,
        "cache": ("with", "without")[i],
        "epochs": epochs,
        "seconds of tune": results[i].seconds,
        "of the time without": results[i].seconds / results[1].seconds,
        "test accuracy": results[i].scores["test"].values["accuracy"],
        "largest difference of a weight": f"{apart:.1e}",
    }


if __name__ == "__main__":
    main()

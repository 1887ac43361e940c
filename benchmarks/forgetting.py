"""What a language model learns of a new domain, and forgets of its old one: `python -m benchmarks.forgetting`.

stories260K (a Llama of 260,000 parameters, trained on TinyStories) is tuned on encyclopedia articles (the first 150,000
characters of wikitext-2's validation split, 256 tokens a piece; the first 40,000 of its test split to score) by LoRA
with r = 1, 8 and 64 on every Linear and by full tuning, 8 epochs. After each epoch two losses are noted: on the
articles, and on 80 short stories (those in recipes/data/story-helper). Each contender's learning rate is the one of its
grid that ends with the lowest loss on articles. Those learn unequally much, so the last column compares what is
forgotten where all have learnt as much as the one that learnt least: of every epoch at every rate that has, the lowest
loss on stories. Beside the table a picture is written, with every rate's curve, the chosen one's thick: the further
left the more was learnt, the higher the more was forgotten. Data is looked for in $PEFTLAB_DATA, or else in
../shared/data.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

import peftlab
from benchmarks.results import FOLDER, data_folder, write_result
from peftlab.base import Base
from peftlab.bench import conditions
from peftlab.tuning import Progress

STORIES = Path(__file__).parents[1] / "recipes" / "data" / "story-helper"
SIZES = {"train": ("valid.txt", 150_000), "validation": ("test.txt", 40_000)}
TOKENS, EPOCHS = 256, 8
LORA_RATES, FULL_RATES = (1e-3, 3e-3, 1e-2), (1e-4, 3e-4, 1e-3, 3e-3)
CONTENDERS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    **{f"LoRA, r = {r}": ({"type": "lora", "r": r, "lora_alpha": 2 * r}, LORA_RATES) for r in (1, 8, 64)},
    "full": ({"type": "full"}, FULL_RATES),
}
Point = tuple[float, float]
"""Losses, in nats a token, on the new domain and on the old."""


class Watching(Progress):
    """Notes both losses before training and after each epoch."""

    def __init__(self, stories: list[str]) -> None:
        self.points: list[Point] = []
        self.trained = 0
        self._stories = stories

    def base_loaded(self, base: Base, trained: int) -> None:
        """The model is made around this base, which is thus the adapted one."""
        self._base, self.trained = base, trained

    def epoch_done(self, epoch: float, scores: Mapping[str, float], *, best: bool) -> None:
        """On articles it is scored already."""
        self.points.append((scores["loss"], loss_on(self._base, self._stories)))


def loss_on(base: Base, texts: list[str]) -> float:
    """Mean loss of a language model on texts, in nats a token."""
    from peftlab.data import Row
    from peftlab.errors import Problems
    from peftlab.tasks import Ground
    from peftlab.tasks.causal_lm import CausalLmTask
    from peftlab.tasks.predicting import predict_examples

    task = CausalLmTask()
    with Problems() as problems:
        task.suit(Ground(base.tokenizer, base.model.config, base.max_length), {}, problems)
    examples = [task.read(Row({"text": text}, "")) for text in texts]
    told = predict_examples(task, base.model, base.tokenizer, examples, max_length=TOKENS)
    return task.score(examples, told).values["loss"]


@click.command(help=__doc__)
@click.option("--epochs", default=EPOCHS, show_default=True)
def main(epochs: int) -> None:
    """Tune all, print and write the table and the picture."""
    data = data_folder()
    stories = sorted({row["input"] for row in _story_rows() if "input" in row})
    start, tried = untuned(data, stories), dict[str, dict[float, Watching]]()
    for name, (method, rates) in CONTENDERS.items():
        tried[name] = {rate: tuned(data, stories, method, rate, epochs) for rate in rates}
        click.echo(f"{name}: { ({rate: run.points[-1] for rate, run in tried[name].items()}) }")
    level = max(min(point[0] for point in _points(runs)) for runs in tried.values())
    rows = [_row(name, runs, start, level) for name, runs in tried.items()]
    write_result("forgetting", "Learning a new domain, forgetting the old", rows, __doc__ or "")
    draw(tried, start, FOLDER / f"{conditions().date}-forgetting.png")


def _story_rows() -> list[dict[str, str]]:
    return [json.loads(line) for file in sorted(STORIES.glob("*.jsonl")) for line in file.read_text().splitlines()]


def untuned(data: Path, stories: list[str]) -> Point:
    """Both losses of the base as it is."""
    from peftlab.base import load_base
    from peftlab.recipe import BaseSection
    from peftlab.tasks.causal_lm import CausalLmTask

    base = load_base(BaseSection(model=str(data / "stories260K")), CausalLmTask(), seed=0, device="cpu")
    return loss_on(base, articles(data, "validation")), loss_on(base, stories)


def articles(data: Path, split: str) -> list[str]:
    """Paragraphs of wikitext, without its headings."""
    file, characters = SIZES[split]
    return paragraphs(data / "lm_wikitext2_validtest" / file, 0, characters)


def paragraphs(file: Path, start: int, end: int) -> list[str]:
    """Those of one file of wikitext between two characters, without headings."""
    lines = file.read_text(encoding="utf8")[start:end].splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("=")]


def tuned(data: Path, stories: list[str], method: dict[str, Any], rate: float, epochs: int) -> Watching:
    """What was noted of one run."""
    watching = Watching(stories)
    with tempfile.TemporaryDirectory() as folder:
        for split in SIZES:
            rows = (json.dumps({"text": text}) for text in articles(data, split))
            (Path(folder) / f"{split}.jsonl").write_text("\n".join(rows), encoding="utf8")
        sections = {
            "name": "articles",
            "base": {"model": str(data / "stories260K")},
            "task": {"type": "causal-lm"},
            "method": method,
            "data": {"train": "train.jsonl", "validation": "validation.jsonl", "max_length": TOKENS},
            "training": {
                "learning_rate": rate,
                "num_train_epochs": epochs,
                "early_stopping_patience": None,
                "bf16": False,
            },
        }
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(json.dumps(sections), encoding="utf8")  # JSON is YAML
        peftlab.tune(recipe, store=Path(folder) / "store", progress=watching)
    return watching


def _points(runs: Mapping[float, Watching]) -> list[Point]:
    return [point for run in runs.values() for point in run.points]


def _chosen(runs: Mapping[float, Watching]) -> float:
    """The rate that ends with the lowest loss on articles."""
    return min(runs, key=lambda rate: runs[rate].points[-1][0])


def _row(name: str, runs: Mapping[float, Watching], start: Point, level: float) -> dict[str, Any]:
    """`level` is the loss on articles that every contender has reached."""
    rate = _chosen(runs)
    end = runs[rate].points[-1]
    kept = min(stories for articles, stories in _points(runs) if articles <= level)
    return {
        "method": name,
        "learning rate": f"{rate:g}",
        "trained": f"{runs[rate].trained:,}",
        "articles, before": start[0],
        "articles, after": end[0],
        "stories, before": start[1],
        "stories, after": end[1],
        "learnt": start[0] - end[0],
        "forgotten": end[1] - start[1],
        f"forgotten at {level:.2f} on articles": kept - start[1],
    }


def draw(tried: Mapping[str, Mapping[float, Watching]], start: Point, file: Path) -> None:
    """A curve a method and rate, an epoch a point, from the base on."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, runs) in enumerate(tried.items()):
        for rate, run in runs.items():
            wide = {"linewidth": 1.6, "label": f"{name} ({rate:g})"} if rate == _chosen(runs) else {"linewidth": 0.6}
            points = zip(start, *run.points, strict=True)
            axes.plot(*points, marker="o", markersize=2.5, color=f"C{number}", **wide)
    axes.plot(*start, marker="s", color="black")
    axes.annotate("base", start, textcoords="offset points", xytext=(-6, 8), ha="right")
    axes.set(xlabel="loss on articles, which are learnt", ylabel="loss on stories, which are forgotten")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=120)
    click.echo(f"drawn in {file}")


if __name__ == "__main__":
    main()

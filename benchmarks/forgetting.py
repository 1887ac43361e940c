"""Learning a new domain, and forgetting the old one: `python -m benchmarks.forgetting`.

stories260K (a Llama with 260,000 parameters and hidden size 64, trained on TinyStories) is tuned on encyclopedia
articles (the first `--characters` of wikitext-2's validation split, 256 tokens per chunk; scored on the first 40,000
characters of its test split) by LoRA with r = 1, 8 and 64 on every Linear, and by full fine-tuning. After each epoch
two losses are recorded: on the articles, and on 80 short stories (those in recipes/data/story-helper). For each method
the table has the learning rate and the epoch with the lowest loss on articles. Methods differ in how much they learn,
so the last columns compare forgetting at equal loss on articles: the point where a curve first reaches this loss, by
linear interpolation between epochs, for the learning rate that forgets least there. A picture has the curves of all
learning rates, with the selected one as a thick line: points further left learned more, points further up forgot more.
Completed runs are stored in benchmarks/results/forgetting.jsonl and are not repeated. The data folder is $PEFTLAB_DATA,
or ../shared/data by default.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

import peftlab
from benchmarks.results import FOLDER, append_run, data_folder, load_runs, write_result
from peftlab.base import Base
from peftlab.bench import benchmark_environment
from peftlab.tuning import Progress

STORIES = Path(__file__).parents[1] / "recipes" / "data" / "story-helper"
SCORED = 40_000  # characters
TOKENS, EPOCHS, CHARACTERS = 256, 4, 400_000
LEVELS = (4.0, 3.75, 3.5, 3.25)  # on articles
RUNS = "forgetting"
LORA_RATES, FULL_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
CANDIDATES: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    **{
        f"LoRA, r = {r}": ({"type": "lora", "r": r, "lora_alpha": 2 * r}, rates)
        for r, rates in ((1, LORA_RATES), (8, LORA_RATES), (64, LORA_RATES[:-1]))
    },
    "full": ({"type": "full"}, FULL_RATES),
}
Point = tuple[float, float]
"""Losses on the new domain and on the old one, in nats per token."""


@dataclass(frozen=True)
class Run:
    """One method at one learning rate: number of trained parameters, and both losses before training and after each
    epoch."""

    candidate: str
    rate: float
    characters: int
    epochs: int
    trained: int
    points: list[Point]

    @property
    def best(self) -> Point:
        """The point with the lowest loss on articles."""
        return min(self.points)

    def story_loss_at(self, level: float) -> float | None:
        """The loss on stories where the loss on articles first reaches `level`, interpolated linearly between
        epochs."""
        for (above, before), (below, after) in pairwise(self.points):
            if below <= level <= above:
                return before + (after - before) * (above - level) / (above - below)
        return None


class LossRecorder(Progress):
    """Record both losses before training and after each epoch."""

    def __init__(self, stories: list[str]) -> None:
        self.points: list[Point] = []
        self.trained = 0
        self._stories = stories

    def on_base_loaded(self, base: Base, trained: int) -> None:
        """Keep the base; the adapter is added to it in place."""
        self._base, self.trained = base, trained

    def on_epoch_end(self, epoch: float, scores: Mapping[str, float], *, best: bool) -> None:
        """Record both losses; `scores` has the one on articles."""
        self.points.append((scores["loss"], loss_on(self._base, self._stories)))


def loss_on(base: Base, texts: list[str]) -> float:
    """Mean loss of a language model on texts, in nats per token."""
    from peftlab.data import Row
    from peftlab.errors import ErrorCollector
    from peftlab.tasks import ModelContext
    from peftlab.tasks.causal_lm import CausalLmTask
    from peftlab.tasks.prediction import predict_examples

    task = CausalLmTask()
    with ErrorCollector() as errors:
        task.bind_to_base(ModelContext(base.inputs, base.model.config, base.max_length), {}, errors)
    examples = [task.read(Row({"text": text}, "")) for text in texts]
    told = predict_examples(task, base.model, base.inputs, examples, max_length=TOKENS)
    return task.metric.score(examples, told).values["loss"]


@click.command(help=__doc__)
@click.option("--characters", default=CHARACTERS, show_default=True)
@click.option("--epochs", default=EPOCHS, show_default=True)
def main(characters: int, epochs: int) -> None:
    """Do the missing runs, print and write the table and the picture."""
    data = data_folder()
    stories = sorted({row["input"] for row in _story_rows() if "input" in row})
    for candidate, (_, rates) in CANDIDATES.items():
        for rate in rates:
            if not any((run.candidate, run.rate) == (candidate, rate) for run in _done(characters, epochs)):
                _note(tuned(data, stories, candidate, rate, characters, epochs))
    done = _done(characters, epochs)
    by_rate = {name: [run for run in done if run.candidate == name] for name in CANDIDATES}
    rows = [_row(runs) for runs in by_rate.values()]
    write_result("forgetting", "Learning a new domain, forgetting the old", rows, __doc__ or "")
    draw(by_rate, FOLDER / f"{benchmark_environment().date}-forgetting.png")


def _done(characters: int, epochs: int) -> list[Run]:
    return [run for run in load_runs(RUNS, Run) if (run.characters, run.epochs) == (characters, epochs)]


def _note(run: Run) -> None:
    append_run(RUNS, run)
    click.echo(f"{run.candidate}, {run.rate:g}: {run.best}")


def _story_rows() -> list[dict[str, str]]:
    return [json.loads(line) for file in sorted(STORIES.glob("*.jsonl")) for line in file.read_text().splitlines()]


def evaluate_base(data: Path, stories: list[str]) -> Point:
    """Both losses of the base model."""
    from peftlab.base import load_base
    from peftlab.recipe import BaseSection
    from peftlab.tasks.causal_lm import CausalLmTask

    base = load_base(BaseSection(model=str(data / "stories260K")), CausalLmTask(), seed=0, device="cpu")
    return loss_on(base, _validation_texts(data)), loss_on(base, stories)


def _validation_texts(data: Path) -> list[str]:
    return paragraphs(data / "lm_wikitext2_validtest" / "test.txt", 0, SCORED)


def paragraphs(file: Path, start: int, end: int) -> list[str]:
    """The paragraphs of a wikitext file between two character offsets, without headings."""
    lines = file.read_text(encoding="utf8")[start:end].splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("=")]


def tuned(data: Path, stories: list[str], candidate: str, rate: float, characters: int, epochs: int) -> Run:
    """Do one run, and return its losses."""
    recorder = LossRecorder(stories)
    with tempfile.TemporaryDirectory() as folder:
        learnt = paragraphs(data / "lm_wikitext2_validtest" / "valid.txt", 0, characters)
        for split, texts in {"train": learnt, "validation": _validation_texts(data)}.items():
            rows = (json.dumps({"text": text}) for text in texts)
            (Path(folder) / f"{split}.jsonl").write_text("\n".join(rows), encoding="utf8")
        sections = {
            "name": "articles",
            "base": {"model": str(data / "stories260K")},
            "task": {"type": "causal-lm"},
            "method": CANDIDATES[candidate][0],
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
        peftlab.tune(recipe, store=Path(folder) / "store", progress=recorder)
    start = evaluate_base(data, stories)
    return Run(candidate, rate, characters, epochs, recorder.trained, [start, *recorder.points])


def _chosen(runs: list[Run]) -> Run:
    """The run with the lowest loss on articles."""
    return min(runs, key=lambda run: run.best)


def _row(runs: list[Run]) -> dict[str, Any]:
    chosen = _chosen(runs)
    (articles, stories), (learnt, kept) = chosen.points[0], chosen.best
    return {
        "method": chosen.candidate,
        "learning rate": f"{chosen.rate:g}",
        "trained": f"{chosen.trained:,}",
        "articles, before": articles,
        "articles, after": learnt,
        "stories, before": stories,
        "stories, after": kept,
        "learnt": articles - learnt,
        "forgotten": kept - stories,
        **{f"forgotten at {level} on articles": _forgetting_at(runs, level) for level in LEVELS},
    }


def _forgetting_at(runs: list[Run], level: float) -> float | str:
    """The smallest increase of the loss on stories at this loss on articles; a dash if no run reaches it."""
    at = [there - run.points[0][1] for run in runs if (there := run.story_loss_at(level)) is not None]
    return min(at, default="–")


def draw(by_rate: Mapping[str, list[Run]], file: Path) -> None:
    """Draw a curve for each method and learning rate, with a point for the base model and for each epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, runs) in enumerate(by_rate.items()):
        for run in runs:
            wide = {"linewidth": 1.6, "label": f"{name} ({run.rate:g})"} if run is _chosen(runs) else {"linewidth": 0.6}
            axes.plot(*zip(*run.points, strict=True), marker="o", markersize=2.5, color=f"C{number}", **wide)
    start = next(iter(by_rate.values()))[0].points[0]
    axes.plot(*start, marker="s", color="black")
    axes.annotate("base", start, textcoords="offset points", xytext=(-6, 8), ha="right")
    axes.set(xlabel="loss on articles (new domain)", ylabel="loss on stories (old domain)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=120)
    click.echo(f"picture written to {file}")


if __name__ == "__main__":
    main()

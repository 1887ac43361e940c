"""The ways of tuning side by side: all that makes it fast switched off, then on again, one thing after another."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.bench.processes import measure_call, warm_up
from peftlab.bench.step_time import COMPILED, COMPILING
from peftlab.bench.summary import TimedRun
from peftlab.bench.validation import check_ways

PLAIN = "plain"
SWITCHES: dict[str, dict[str, Any]] = {
    "batching": {"training.train_sampling_strategy": "random"},
    "kernel": {"training.fused_lora": False},
    "attention": {"base.attn_implementation": "sdpa"},
    "precision": {"training.bf16": False},
    "dropout": {"training.base_dropout": True, "method.lora_dropout": 0.1},
}
"""What makes tuning fast → the recipe's keys that do without it, as plain Transformers + PEFT is mostly used."""

Told = Callable[[int, int], None]
"""Is told how many runs are done, and of how many."""


@dataclass(frozen=True)
class Way:
    """One way of tuning a recipe: its name, and what it changes there."""

    name: str
    overrides: Mapping[str, Any]


def ways_of_tuning(*, compiled: bool = False) -> list[Way]:
    """From plain to the recipe as it stands; each way leaves one more thing to the recipe than the one before.

    After them, if asked for, that recipe `compiled`: by torch.compile in the place of our own functions.
    """
    names = [PLAIN, *(f"+ {name}" for name in SWITCHES)]
    off = list(SWITCHES.values())
    ways = [Way(name, _joined(off[count:])) for count, name in enumerate(names)]
    return [*ways, Way(COMPILED, COMPILING)] if compiled else ways


def compare_ways(
    recipe_path: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    ways: Sequence[Way] | None = None,
    seeds: Sequence[int] | None = None,
    device: str = "auto",
    told: Told = lambda done, total: None,
) -> list[TimedRun]:
    """Tune a recipe in each way with each seed, each run in a fresh process with an empty cache, and publish nothing.

    Every run goes through all epochs, so that all do the same work. Ways alternate within a seed, and turn their order
    from one seed to the next.

    Args:
        recipe_path: The recipe, a YAML file.
        overrides: Dotted recipe keys → values for every way; what a way changes itself comes after them.
        ways: Those of `ways_of_tuning`, if None.
        seeds: The recipe's own, if None.
        device: auto, cpu, cuda or mps.
        told: Hears how many runs are done, and of how many.

    Raises:
        RecipeError: the recipe or the data cannot be used in one of the ways; found before the first run.
        BaseNotFoundError: the base model is nowhere.
        PeftlabError: a run failed.
    """
    given = {**(overrides or {}), "training.early_stopping_patience": None}
    chosen = {way.name: {**given, **way.overrides} for way in (ways or ways_of_tuning())}
    own_seed = check_ways(recipe_path, list(chosen.values())).training.seed
    order = [
        (name, seed)
        for place, seed in enumerate(seeds or [own_seed])
        for name in (list(chosen) if place % 2 == 0 else reversed(chosen))
    ]
    warm_up()
    runs = []
    for done, (name, seed) in enumerate(order):
        told(done, len(order))
        runs.append(_timed_run(name, recipe_path, {**chosen[name], "training.seed": seed}, seed, device))
    told(len(order), len(order))
    return runs


def _joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: value for part in parts for key, value in part.items()}


def _timed_run(name: str, recipe_path: str | Path, overrides: Mapping[str, Any], seed: int, device: str) -> TimedRun:
    with tempfile.TemporaryDirectory() as folder:
        measured = measure_call(
            "peftlab.bench.tuning_worker",
            "tune_watched",
            environment={"PEFTLAB_CACHE": f"{folder}/cache"},
            recipe_path=str(recipe_path),
            overrides=dict(overrides),
            store=f"{folder}/store",
            device=device,
        )
    told = measured.value
    parts = {"start": measured.seconds - sum(told["parts"].values()), **told["parts"]}
    return TimedRun(name, seed, measured.seconds, measured.peak_bytes, told["score"], parts)

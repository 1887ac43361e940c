"""Compare setups of tuning: first all optimizations are off, then they are turned on one after another."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.bench.processes import call_in_process, warm_up
from peftlab.bench.step_time import COMPILED, COMPILING
from peftlab.bench.summary import RunTime
from peftlab.bench.validation import check_setups

PLAIN = "plain"
OPTIMIZATIONS: dict[str, dict[str, Any]] = {
    "batching": {"training.train_sampling_strategy": "random"},
    "kernel": {"training.fused_lora": False},
    "attention": {"base.attn_implementation": "sdpa"},
    "precision": {"training.bf16": False},
    "dropout": {"training.base_dropout": True, "method.lora_dropout": 0.1},
}
"""Each optimization → the recipe keys that turn it off, as in common use of plain Transformers + PEFT."""

OnProgress = Callable[[int, int], None]
"""Called with the number of finished runs and the number of all runs."""


@dataclass(frozen=True)
class Setup:
    """A variant of a recipe: its name and its overrides (dotted recipe keys → values)."""

    name: str
    overrides: Mapping[str, Any]


def tuning_setups(*, compiled: bool = False) -> list[Setup]:
    """Return the setups from plain to the unchanged recipe; each one turns on one more optimization.

    With `compiled`, the last setup is the recipe with torch.compile instead of peftlab's own functions.
    """
    names = [PLAIN, *(f"+ {name}" for name in OPTIMIZATIONS)]
    off = list(OPTIMIZATIONS.values())
    setups = [Setup(name, _merge(off[count:])) for count, name in enumerate(names)]
    return [*setups, Setup(COMPILED, COMPILING)] if compiled else setups


def compare_setups(
    recipe_path: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    setups: Sequence[Setup] | None = None,
    seeds: Sequence[int] | None = None,
    device: str = "auto",
    on_progress: OnProgress = lambda done, total: None,
) -> list[RunTime]:
    """Tune a recipe in each setup with each seed, every run in a new process with an empty cache; publish nothing.

    Every run trains for all epochs, so that all runs do the same work. The setups alternate within a seed, in reverse
    order for every second seed.

    Args:
        recipe_path: The recipe, a YAML file.
        overrides: Dotted recipe keys → values for every setup; the overrides of a setup take precedence.
        setups: The setups; None means those of `tuning_setups`.
        seeds: The seeds; None means the seed of the recipe.
        device: auto, cpu, cuda or mps.
        on_progress: Called with the number of finished runs and the number of all runs.

    Raises:
        RecipeError: the recipe or the data cannot be used in one of the setups; raised before the first run.
        BaseNotFoundError: the base model was not found.
        PeftlabError: a run failed.
    """
    shared = {**(overrides or {}), "training.early_stopping_patience": None}
    chosen = {setup.name: {**shared, **setup.overrides} for setup in (setups or tuning_setups())}
    recipe_seed = check_setups(recipe_path, list(chosen.values())).training.seed
    order = [
        (name, seed)
        for index, seed in enumerate(seeds or [recipe_seed])
        for name in (list(chosen) if index % 2 == 0 else reversed(chosen))
    ]
    warm_up()
    runs = []
    for done, (name, seed) in enumerate(order):
        on_progress(done, len(order))
        runs.append(_time_run(name, recipe_path, {**chosen[name], "training.seed": seed}, seed, device))
    on_progress(len(order), len(order))
    return runs


def _merge(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: value for part in parts for key, value in part.items()}


def _time_run(name: str, recipe_path: str | Path, overrides: Mapping[str, Any], seed: int, device: str) -> RunTime:
    with tempfile.TemporaryDirectory() as folder:
        result = call_in_process(
            "peftlab.bench.tuning_worker",
            "time_tuning",
            environment={"PEFTLAB_CACHE": f"{folder}/cache"},
            recipe_path=str(recipe_path),
            overrides=dict(overrides),
            store=f"{folder}/store",
            device=device,
        )
    fields = result.value
    parts = {"start": result.seconds - sum(fields["parts"].values()), **fields["parts"]}
    return RunTime(name, seed, result.seconds, result.peak_bytes, fields["score"], parts)

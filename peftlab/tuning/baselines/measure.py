"""Measure the baselines of a run before it trains: the majority, and a linear probe on the frozen base."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.base import Base
from peftlab.data.splitting import stratified_sample
from peftlab.errors import ErrorCollector
from peftlab.recipe import Recipe
from peftlab.tasks import Feature, Task
from peftlab.tasks.inputs.features import IGNORED
from peftlab.tasks.prediction import ForwardFunction, compute_outputs, predict_features
from peftlab.tuning.baselines.linear_probe import LinearProbe, choose_strength, fit_probe
from peftlab.tuning.baselines.states import FrozenStates, compute_frozen_states
from peftlab.tuning.dataset import CROSS_VALIDATION, EncodedDataset
from peftlab.tuning.distributed.backend_check import shards_base
from peftlab.tuning.schedule import steps_per_epoch, total_steps
from peftlab.tuning.session import TuningSession

COST_SHARE = 0.02
"""Share of the cost of training that a probe may take: half for fitting, half for scoring."""
TRAINING_COST = 3.7  # a training step in forward passes (decision 0011)
MIN_TOKENS = 10_000  # for fitting in any case: about a second on two cores with 22 million parameters
MIN_TOKENS_OF_FEW_ROWS = 50_000  # for scoring a run with fewer than FEW_ROWS rows: 45 long rows would not be enough
FEW_ROWS = 1000
HELD_OUT = 4  # one of so many rows is held out to choose the strength of the penalty


@dataclass(frozen=True)
class FittedProbe:
    """A linear probe on states of training rows, for the head's output layer named `layer`."""

    layer: str
    states: FrozenStates
    probe: LinearProbe
    has_bias: bool

    def refit(self, task: Task, without: Sequence[int]) -> LinearProbe:
        """A probe fitted without these training rows, for cross-validation."""
        states = self.states.select(without, invert=True)
        return fit_probe(states, task.head, strength=self.probe.strength, with_bias=self.has_bias)


@dataclass(frozen=True)
class BaselineScores:
    """Main scores of baselines on `split`; `linear_probe` is None if the head has no output layer to fit.

    `training_rows` says how many rows the probe was fitted on, `scored_rows` how many it was scored on.
    """

    split: str
    majority: float
    linear_probe: float | None = None
    training_rows: int = 0
    scored_rows: int = 0

    def describe(self, metric: str) -> str:
        """The scores as a phrase."""
        probe = "" if self.linear_probe is None else f"linear probe on the frozen base {self.linear_probe:.3f}, "
        return f"{self.split} {metric}: {probe}majority {self.majority:.3f}"


@dataclass(frozen=True)
class Baselines:
    """The fitted probe, and the scores of baselines; None if the task has no such baselines, or no rows to score."""

    probe: FittedProbe | None = None
    scores: BaselineScores | None = None


NO_BASELINES = Baselines()


def measure_baselines(base: Base, recipe: Recipe, dataset: EncodedDataset, session: TuningSession) -> Baselines:
    """Fit the baselines to training rows, and score them on the rows by which the adapter will be judged."""
    with session.process_group.sync_errors():
        constant = constant_logits(dataset)
        if constant is None:
            return Baselines()
        sharded = shards_base(recipe.training.distributed, session.process_group)
        probe = None if sharded else fit_linear_probe(base, recipe, dataset)
        if probe is None and recipe.training.head_init == "probe":
            _raise_no_probe(recipe, sharded=sharded)
        scores = score_baselines(base, recipe, dataset, constant, probe) if dataset.judged_by else None
    if scores:
        session.progress.info(f"Before training, {scores.describe(dataset.task.metric.name)}.")
    return Baselines(probe, scores)


def _raise_no_probe(recipe: Recipe, *, sharded: bool) -> None:
    with ErrorCollector() as errors:
        reason = "no process has the full base" if sharded else "the head of this base has no Linear layer of its own"
        message = f"the head cannot start from a probe: {reason}."
        errors.add(message, key="training.head_init", hint="Use auto.")


def constant_logits(dataset: EncodedDataset) -> Tensor | None:
    """The best logits that are the same for every input; None if the task has no classes, tags or numbers."""
    head, features = dataset.task.head, [one for windows in dataset.features["train"] for one in windows]
    if not head.labels:
        return None
    if head.is_token_level:
        targets = [label for feature in features for label in feature.labels if label != IGNORED]
    else:
        targets = [feature.labels for feature in features]
    return head.constant_logits(torch.tensor(targets))


def fit_linear_probe(base: Base, recipe: Recipe, dataset: EncodedDataset) -> FittedProbe | None:
    """Fit a probe to as many training rows as the run's cost allows; None if the head has no output layer to fit."""
    task = dataset.task
    if base.output_layer is None:
        return None
    layer = base.model.get_submodule(base.output_layer)
    assert isinstance(layer, nn.Linear)
    rows = [row for row in affordable_rows("train", recipe, dataset) if dataset.features["train"][row]]
    states = compute_frozen_states(base, task, {row: dataset.features["train"][row][0] for row in rows})
    if not bool(states.states.isfinite().all()):
        return None  # training will say so
    has_bias = layer.bias is not None
    strength = choose_strength(states, task.head, rows[::HELD_OUT], with_bias=has_bias)
    return FittedProbe(
        base.output_layer, states, fit_probe(states, task.head, strength=strength, with_bias=has_bias), has_bias
    )


def score_baselines(
    base: Base, recipe: Recipe, dataset: EncodedDataset, constant: Tensor, probe: FittedProbe | None
) -> BaselineScores:
    """Main scores of the constant logits and of the probe, on the rows by which the adapter will be judged."""
    split, task = dataset.judged_by, dataset.task
    assert split
    every_row = range(len(dataset.examples[split]))

    def majority_outputs(features: Sequence[Feature]) -> list[Tensor]:
        return [task.head.empty_output(feature) + constant for feature in features]

    majority = _main_score(dataset, split, every_row, _predict(dataset, split, every_row, majority_outputs))
    if probe is None:
        return BaselineScores(split, majority)
    is_cross_validated = split == CROSS_VALIDATION
    rows = every_row if is_cross_validated else affordable_rows(split, recipe, dataset)
    predictions: dict[int, Any] = {}
    for scored in dataset.folds if is_cross_validated else [rows]:
        fitted = probe.refit(task, without=scored) if is_cross_validated else probe.probe
        layer = base.model.get_submodule(probe.layer)
        assert isinstance(layer, nn.Linear)
        with fitted.inserted_in(layer):
            outputs = partial(compute_outputs, task, base.model, base.inputs)
            predictions |= zip(scored, _predict(dataset, split, scored, outputs), strict=True)
    score = _main_score(dataset, split, rows, [predictions[row] for row in rows])
    return BaselineScores(split, majority, score, len(set(probe.states.rows.tolist())), len(rows))


def _predict(dataset: EncodedDataset, split: str, rows: Sequence[int], outputs: ForwardFunction) -> list[Any]:
    examples, features = dataset.examples[split], dataset.features[split]
    return predict_features(dataset.task, [examples[row] for row in rows], [features[row] for row in rows], outputs)


def _main_score(dataset: EncodedDataset, split: str, rows: Sequence[int], predictions: Sequence[Any]) -> float:
    metric = dataset.task.metric
    return metric.score([dataset.examples[split][row] for row in rows], predictions).values[metric.name]


def affordable_rows(split: str, recipe: Recipe, dataset: EncodedDataset) -> list[int]:
    """Row numbers of a split, by label, whose forward passes take at most half of `COST_SHARE`, or a minimum."""
    lengths = {name: sum(len(one) for row in dataset.features[name] for one in row) for name in {split, "train"}}
    num_rows = len(dataset.examples["train"])
    epochs = total_steps(recipe.training, num_rows) / steps_per_epoch(recipe.training, num_rows)
    least = MIN_TOKENS_OF_FEW_ROWS if split != "train" and num_rows < FEW_ROWS else MIN_TOKENS
    budget = max(least, COST_SHARE * TRAINING_COST * epochs * lengths["train"] / 2)
    examples = dataset.examples[split]
    size = math.ceil(len(examples) * min(1, budget / max(1, lengths[split])))
    labels = [list(dataset.task.targets.labels_of(example)) for example in examples]
    return stratified_sample(labels, size, recipe.data.seed)

"""Scores of a trained run, by the same decoding that serving uses."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from peftlab.tasks import Feature, Scores
from peftlab.tasks.metrics.calibration import TEMPERATURE
from peftlab.tasks.prediction import FeatureOutput, decode_outputs, forward_windows
from peftlab.tuning.divergence import warn_if_collapsed
from peftlab.tuning.preference.reference import attach_references, run_forward
from peftlab.tuning.run import Run
from peftlab.tuning.session import TuningSession


@dataclass(frozen=True)
class SplitOutputs:
    """The examples of a split, their features, and the outputs of the features of each example."""

    examples: Sequence[Any]
    features: Sequence[Sequence[Feature]]
    outputs: Sequence[Sequence[FeatureOutput]]


def evaluate(run: Run, session: TuningSession) -> dict[str, Scores]:
    """Scores of every split but the training split, with the temperature that is fitted to the validation split.

    Warns if the validation scores show that nothing was learned.
    """
    splits = {split: forward_split(run, split) for split in run.dataset.examples if split != "train"}
    scores = {split: score_outputs(run, split, outputs) for split, outputs in splits.items()}
    validation = splits["validation"]
    run.task.metric.fit_temperature(validation.examples, validation.features, validation.outputs)
    if TEMPERATURE in run.task.state:
        scores = {split: _score_again(run, split, splits[split], before) for split, before in scores.items()}
    warn_if_collapsed(run.recipe, run.task, scores["validation"], session.progress)
    return scores


def evaluate_split(run: Run, split: str) -> Scores:
    """Scores of the decoded predictions of one split; the validation split also calibrates the decoding."""
    return score_outputs(run, split, forward_split(run, split))


def forward_split(run: Run, split: str) -> SplitOutputs:
    """The outputs of the model for one split."""
    features = attach_references(run, run.dataset.features[split])
    return SplitOutputs(run.dataset.examples[split], features, forward_windows(features, run_forward(run)))


def score_outputs(run: Run, split: str, outputs: SplitOutputs) -> Scores:
    """Scores of the predictions that are decoded from outputs; see `evaluate_split`."""
    predictions = decode_outputs(run.task, outputs.examples, outputs.features, outputs.outputs)
    if split == "validation":
        predictions = list(run.task.metric.calibrate(outputs.examples, predictions))
    scores = run.task.metric.score(outputs.examples, predictions)
    return Scores.from_dict(
        run.process_group.broadcast(scores.as_dict)
    )  # the same in all processes, in spite of rounding


def _score_again(run: Run, split: str, outputs: SplitOutputs, before: Scores) -> Scores:
    """Scores with the fitted temperature, which remember the calibration error `before` it."""
    scores = score_outputs(run, split, outputs)
    if not (scores.calibration and before.calibration):
        return scores
    return replace(scores, calibration=replace(scores.calibration, ece_uncalibrated=before.calibration.ece))

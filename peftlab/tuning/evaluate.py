"""Scores of a trained run, by the same decoding that serving uses."""

from dataclasses import replace

from peftlab.tasks import Scores
from peftlab.tasks.metrics.calibration import TEMPERATURE
from peftlab.tasks.prediction import decode_outputs, forward_windows
from peftlab.tuning.dataset import CROSS_VALIDATION
from peftlab.tuning.divergence import warn_if_collapsed
from peftlab.tuning.preference.reference import attach_references, run_forward
from peftlab.tuning.run import Run
from peftlab.tuning.session import TuningSession
from peftlab.tuning.split_outputs import SplitOutputs

UNSCORED = ("train", CROSS_VALIDATION)
HELD_OUT = {"validation", CROSS_VALIDATION}
"""Splits that calibrate; a run has at most one of them."""


def evaluate(run: Run, session: TuningSession) -> dict[str, Scores]:
    """Scores by split: validation, or cross-validation, and test, with the temperature that is fitted to the first.

    Warns if they show that nothing was learned.
    """
    splits = {split: forward_split(run, split) for split in run.dataset.examples if split not in UNSCORED}
    if run.cross_validation:
        splits = {CROSS_VALIDATION: run.cross_validation, **splits}
    scores = {split: score_outputs(run, split, outputs) for split, outputs in splits.items()}
    for split in splits.keys() & HELD_OUT:
        run.task.metric.fit_temperature(splits[split].examples, splits[split].features, splits[split].outputs)
    if TEMPERATURE in run.task.state:
        scores = {split: _score_again(run, split, splits[split], before) for split, before in scores.items()}
    for split in scores.keys() & HELD_OUT or scores:
        warn_if_collapsed(run.recipe, run.task, split, scores[split], session.progress)
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
    if split in HELD_OUT:
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

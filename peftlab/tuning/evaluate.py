"""Scores of a trained run, by the same decoding that serving uses."""

from peftlab.tasks import Scores
from peftlab.tasks.prediction import predict_features
from peftlab.tuning.divergence import warn_if_collapsed
from peftlab.tuning.preference.reference import attach_references, run_forward
from peftlab.tuning.run import Run
from peftlab.tuning.session import TuningSession


def evaluate(run: Run, session: TuningSession) -> dict[str, Scores]:
    """Scores of every split but the training split; warns if the validation scores show that nothing was learned."""
    scores = {split: evaluate_split(run, split) for split in run.dataset.examples if split != "train"}
    warn_if_collapsed(run.recipe, run.task, scores["validation"], session.progress)
    return scores


def evaluate_split(run: Run, split: str) -> Scores:
    """Scores of the decoded predictions of one split; the validation split also calibrates the decoding."""
    examples = run.dataset.examples[split]
    features = attach_references(run, run.dataset.features[split])
    predictions = predict_features(run.task, examples, features, run_forward(run))
    if split == "validation":
        predictions = list(run.task.metric.calibrate(examples, predictions))
    scores = run.task.metric.score(examples, predictions)
    return Scores.from_dict(
        run.process_group.broadcast(scores.as_dict)
    )  # the same in all processes, in spite of rounding

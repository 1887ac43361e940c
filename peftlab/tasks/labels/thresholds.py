"""The probabilities from which labels are predicted, one per label, fitted to the micro F1 of validation rows.

The shared threshold is half the best expected F1: with calibrated probabilities this is the best one (Lipton, Elkan and
Naryanaswamy 2014, Optimal Thresholding of Classifiers to Maximize F1 Measure, arXiv:1402.1892). It depends on
probabilities, not on the gold labels, so few rows are enough. The threshold of each label is moved from there as far as
its gold labels support it.
"""

from typing import Any

from peftlab.imports import numpy

SHRINKAGE = 30
"""Number of rows with a label at which its threshold is halfway between the shared one and its own best one."""


def fit_thresholds(probabilities: Any, targets: Any) -> list[float]:
    """A threshold for each label.

    Args:
        probabilities: (rows, labels).
        targets: (rows, labels): 1 where the label applies, else 0.
    """
    predicted, gold = numpy.asarray(probabilities, dtype=float), numpy.asarray(targets, dtype=float)
    shared = shared_threshold(predicted)
    at_shared = predicted >= shared
    f1 = 2 * float((gold * at_shared).sum()) / max(1.0, float(gold.sum() + at_shared.sum()))
    thresholds = []
    for column, right in zip(predicted.T, gold.T, strict=True):
        count = float(right.sum())
        weight = count / (count + SHRINKAGE)
        own = _best_threshold(column, right, f1, shared) if count else shared
        thresholds.append(round(_sigmoid(weight * _logit(own) + (1 - weight) * _logit(shared)), 4))
    return thresholds


def shared_threshold(probabilities: Any) -> float:
    """Half the best F1 that is expected of any threshold, if every probability is that of its label being right."""
    falling = numpy.sort(numpy.asarray(probabilities, dtype=float).ravel())[::-1]
    expected_f1 = 2 * numpy.cumsum(falling) / (numpy.arange(1, len(falling) + 1) + falling.sum())
    return min(0.99, max(0.01, float(expected_f1.max()) / 2))


def _best_threshold(probabilities: Any, gold: Any, f1: float, shared: float) -> float:
    """The threshold of one label that is best for the micro F1 over all labels; of equal ones the nearest to `shared`.

    A prediction is worth 2 if it is right, and costs `f1`: the derivative of micro F1 in its counts.
    """
    edges = numpy.unique(numpy.concatenate([probabilities, [0.01, 0.99]]).clip(0.01, 0.99))
    candidates = numpy.append((edges[1:] + edges[:-1]) / 2, shared)
    chosen = probabilities[None, :] >= candidates[:, None]
    gains = (chosen * (2 * gold - f1)).sum(1)
    best = candidates[gains >= gains.max() - 1e-9]
    nearest: float = best[numpy.abs(best - shared).argmin()]
    return nearest


def _logit(probability: float) -> float:
    return float(numpy.log(probability / (1 - probability)))


def _sigmoid(logit: float) -> float:
    return float(1 / (1 + numpy.exp(-logit)))

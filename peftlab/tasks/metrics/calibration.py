"""Calibration: whether predicted probabilities are frequencies, and the temperature that makes them so.

Rows are grouped by confidence into bins of equal size (Nixon et al. 2019, Measuring Calibration in Deep Learning,
arXiv:1904.01685), because bins of equal width are nearly empty for most confidences.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftlab.imports import numpy, scipy_optimize

MAX_BINS = 15
MIN_ROWS_PER_BIN = 20
TEMPERATURE = "temperature"
"""Key of the temperature in `Task.state`; adapters without it are not calibrated."""
PRIOR_WIDTH = 0.5  # standard deviation of the logarithm of a temperature, before any row is seen
MAX_LOG_TEMPERATURE = 3.0


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error of predictions, and the bins that it was computed from.

    Attributes:
        ece: Expected calibration error: the mean over bins of |accuracy - confidence|, weighted by count.
        ece_debiased: The same without the part that chance adds, which is large for few rows; see `debiased_ece`.
        ece_uncalibrated: `ece` before the temperature was applied; None if it was not measured.
        counts: Number of predictions in each bin.
        confidences: Mean probability of the predictions in each bin.
        accuracies: Share of the predictions in each bin that are right.
    """

    ece: float
    ece_debiased: float
    ece_uncalibrated: float | None
    counts: list[int]
    confidences: list[float]
    accuracies: list[float]

    def __str__(self) -> str:
        before = "" if self.ece_uncalibrated is None else f", {self.ece_uncalibrated:.3f} before calibration"
        return f"ECE {self.ece:.3f}, {self.ece_debiased:.3f} without chance{before}"


def measure_calibration(confidences: Sequence[float], correct: Sequence[bool]) -> Calibration | None:
    """Compare the probabilities of predictions with whether they are right; None without predictions."""
    if not confidences:
        return None
    order = numpy.argsort(confidences, kind="stable")
    bins = numpy.array_split(order, max(1, min(MAX_BINS, len(order) // MIN_ROWS_PER_BIN)))
    probabilities, right = numpy.asarray(confidences, dtype=float), numpy.asarray(correct, dtype=float)
    counts = [len(rows) for rows in bins]
    means = [float(probabilities[rows].mean()) for rows in bins]
    accuracies = [float(right[rows].mean()) for rows in bins]
    return Calibration(
        expected_calibration_error(counts, means, accuracies),
        debiased_ece(counts, means, accuracies),
        None,
        counts,
        means,
        accuracies,
    )


def expected_calibration_error(
    counts: Sequence[int], confidences: Sequence[float], accuracies: Sequence[float]
) -> float:
    """The mean over bins of |accuracy - confidence|, weighted by count (Guo et al. 2017, arXiv:1706.04599)."""
    gaps = [abs(accuracy - mean) for accuracy, mean in zip(accuracies, confidences, strict=True)]
    return sum(count * gap for count, gap in zip(counts, gaps, strict=True)) / sum(counts)


def debiased_ece(counts: Sequence[int], confidences: Sequence[float], accuracies: Sequence[float]) -> float:
    """`expected_calibration_error` minus an estimate of its bias, at least 0.

    The accuracy of a bin varies by chance, so the error of perfect probabilities is above 0. The bias is estimated as
    the mean increase if the accuracies are drawn again from a normal distribution around the measured ones (Kumar et
    al. 2019, Verified Uncertainty Calibration, arXiv:1909.10155); this mean is computed exactly instead of sampled.
    """
    redrawn = [
        _mean_absolute_normal(accuracy - mean, math.sqrt(accuracy * (1 - accuracy) / count))
        for count, mean, accuracy in zip(counts, confidences, accuracies, strict=True)
    ]
    expected = sum(count * gap for count, gap in zip(counts, redrawn, strict=True)) / sum(counts)
    return max(0.0, 2 * expected_calibration_error(counts, confidences, accuracies) - expected)


def _mean_absolute_normal(mean: float, deviation: float) -> float:
    """The mean of |x| for a normally distributed x (the folded normal distribution)."""
    if deviation == 0:
        return abs(mean)
    ratio = mean / deviation
    return deviation * math.sqrt(2 / math.pi) * math.exp(-(ratio**2) / 2) + mean * math.erf(ratio / math.sqrt(2))


def temperature_of(state: Mapping[str, Any]) -> float:
    """The temperature in the state of a task; 1 if there is none."""
    temperature: float = state.get(TEMPERATURE, 1.0)
    return temperature


def describe_temperature(state: Mapping[str, Any]) -> str:
    """A sentence for readers of plain logits, with a space before it; empty without a temperature."""
    temperature = temperature_of(state)
    return "" if temperature == 1 else f" Probabilities are those of the logits divided by {temperature:g}."


def fit_temperature(negative_log_likelihood: Callable[[float], float]) -> float:
    """The temperature by which logits are divided (Guo et al. 2017, arXiv:1706.04599).

    It minimizes the summed negative log-likelihood plus that of a normal prior around 0 for its logarithm: few rows
    move it little, so that rows that happen to be all right do not give probabilities of 1.
    """

    def loss(log_temperature: float) -> float:
        prior = (log_temperature / PRIOR_WIDTH) ** 2 / 2
        return negative_log_likelihood(math.exp(log_temperature)) + prior

    bounds = (-MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE)
    found = scipy_optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return round(math.exp(found.x), 4)


def fit_class_temperature(log_probabilities: Any, targets: Sequence[int]) -> float:
    """The temperature of classes that exclude each other.

    Args:
        log_probabilities: (rows, classes), up to a constant for each row.
        targets: The right class of each row.
    """
    logits = numpy.asarray(log_probabilities, dtype=float)
    right = logits[numpy.arange(len(logits)), targets]

    def negative_log_likelihood(temperature: float) -> float:
        scaled = (logits - logits.max(1, keepdims=True)) / temperature
        log_sum = numpy.log(numpy.exp(scaled).sum(1))
        return float((log_sum - (right - logits.max(1)) / temperature).sum())

    return fit_temperature(negative_log_likelihood)


def fit_label_temperature(logits: Any, targets: Any) -> float:
    """The temperature of independent labels.

    Args:
        logits: (rows, labels).
        targets: (rows, labels): 1 where the label applies, else 0.
    """
    signed = numpy.asarray(logits, dtype=float) * (1 - 2 * numpy.asarray(targets, dtype=float))
    return fit_temperature(lambda temperature: float(numpy.logaddexp(0, signed / temperature).sum()))

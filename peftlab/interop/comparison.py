"""Compare the logits of two models on the same batch."""

from dataclasses import dataclass

import torch

TOLERANCE = 1e-4  # of the largest logit: merging rounds each weight once


@dataclass(frozen=True)
class LogitComparison:
    """The largest difference between the logits of two models, and the largest logit."""

    difference: float
    largest_logit: float

    @property
    def is_equal(self) -> bool:
        """Whether the logits are equal except for rounding; False if some are NaN."""
        return self.difference <= TOLERANCE * self.largest_logit

    def __str__(self) -> str:
        return f"its logits (up to {self.largest_logit:.3g}) differ by {self.difference:.3g}"


def compare_logits(actual: torch.Tensor, expected: torch.Tensor) -> LogitComparison:
    """Compare logits of equal shape."""
    return LogitComparison(float((actual - expected).abs().max()), float(expected.abs().max()))

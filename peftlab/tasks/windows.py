"""The outputs of a long text's windows as those of the text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftlab.imports import torch

if TYPE_CHECKING:
    from torch import Tensor


def mean_log_probabilities(logits: Sequence["Tensor"]) -> "Tensor":
    """The mean log probability of each class over the windows, (classes,), from logits (classes,) of each."""
    return torch.stack([output.float() for output in logits]).log_softmax(-1).mean(0)


def mean_logits(logits: Sequence["Tensor"]) -> "Tensor":
    """The logit of each label's mean probability over the windows, (labels,), in fp64; from logits of each."""
    return torch.stack([output.double() for output in logits]).sigmoid().mean(0).logit(eps=1e-15)

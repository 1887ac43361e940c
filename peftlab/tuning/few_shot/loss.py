"""Supervised contrastive loss (Khosla et al. 2020, arXiv:2004.11362)."""

import torch
from torch import Tensor


def supervised_contrastive_loss(states: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Pull states of the same class together, and push states of other classes apart.

    The loss of a row is the mean cross entropy of finding each other row of its class among all other rows, by cosine
    similarity. A row without another row of its class has no loss of its own.

    Args:
        states: (n, width); they are normalized here.
        labels: (n,), the class of each state.
        temperature: Divides the cosine similarities; low values make close rows count more.

    Returns:
        The mean over all rows that have a loss; 0 if none has one.
    """
    states = torch.nn.functional.normalize(states.float(), dim=-1)
    is_self = torch.eye(len(labels), dtype=torch.bool, device=states.device)
    similarities = (states @ states.T / temperature).masked_fill(is_self, -torch.inf)
    log_probabilities = similarities.log_softmax(-1).masked_fill(is_self, 0)
    is_positive = (labels[:, None] == labels[None]) & ~is_self
    num_positives = is_positive.sum(-1)
    losses = -(log_probabilities * is_positive).sum(-1) / num_positives.clamp(min=1)
    return losses.sum() / (num_positives > 0).sum().clamp(min=1)

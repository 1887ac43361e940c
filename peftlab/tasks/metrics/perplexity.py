"""Token losses of a language model, and perplexity, loss and accuracy over many texts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftlab.imports import torch
from peftlab.tasks.inputs.features import IGNORED
from peftlab.tasks.task import Prediction, Scores

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TokenLoss(Prediction):
    """The negative log-likelihood (`nll`, in nats) of a text's tokens, and how many of them were predicted right."""

    nll: float
    tokens: int
    num_correct: int

    def as_dict(self) -> dict[str, Any]:
        """`text`, `nll`, `tokens` and `num_correct`."""
        return {"text": self.text, "nats": round(self.nll, 4), "tokens": self.tokens, "foreseen": self.num_correct}


def token_losses(logits: "Tensor", targets: "Tensor") -> "Tensor":
    """The loss (nats) of each token, and 1 if it was predicted right: (batch, tokens, 2).

    `logits` are (batch, tokens, vocabulary); targets of -100 have loss 0.
    """
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
    return torch.stack([nll, (logits.argmax(-1) == targets).to(nll.dtype)], dim=-1)


def mean_loss(logits: "Tensor", targets: "Tensor") -> "Tensor":
    """Mean cross entropy over `targets`, (batch, tokens); targets of -100 are ignored."""
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def sum_token_losses(text: str, costs: "Sequence[Tensor]", tokens: int) -> TokenLoss:
    """Sum the `token_losses` of all windows of a text."""
    nll, num_correct = (sum(float(window[:, i].double().sum()) for window in costs) for i in (0, 1))
    return TokenLoss(text, nll, tokens, round(num_correct))


def perplexity_scores(predictions: Sequence[TokenLoss]) -> Scores:
    """Perplexity, loss (nats per token), and the fraction of tokens that were predicted right."""
    tokens = sum(prediction.tokens for prediction in predictions) or 1
    loss = sum(prediction.nll for prediction in predictions) / tokens
    accuracy = sum(prediction.num_correct for prediction in predictions) / tokens
    return Scores({"perplexity": math.exp(min(loss, 700.0)), "loss": loss, "accuracy": accuracy})

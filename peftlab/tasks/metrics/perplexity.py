"""How well a language model told the tokens of a text: what each cost, and scores over many texts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftlab.tasks.task import IGNORED, Prediction, Scores

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Surprise(Prediction):
    """How well a model foresaw the learnt tokens of a text: `nats` is their negative log likelihood, `foreseen` counts
    those that it held to be the likeliest."""

    nats: float
    tokens: int
    foreseen: int

    def as_dict(self) -> dict[str, Any]:
        """`text`, `nats`, `tokens` and `foreseen`."""
        return {"text": self.text, "nats": round(self.nats, 4), "tokens": self.tokens, "foreseen": self.foreseen}


def token_costs(logits: "torch.Tensor", came: "torch.Tensor") -> "torch.Tensor":
    """(batch, tokens, 2): what each token that `came` cost, in nats, and whether it was held to be the likeliest.

    `logits` are (batch, tokens, vocabulary); a token that is -100 costs nothing.
    """
    import torch
    from torch.nn import functional

    nats = functional.cross_entropy(logits.transpose(1, 2), came, ignore_index=IGNORED, reduction="none")
    return torch.stack([nats, (logits.argmax(-1) == came).to(nats.dtype)], dim=-1)


def mean_loss(logits: "torch.Tensor", came: "torch.Tensor") -> "torch.Tensor":
    """Mean cross entropy of the tokens that `came`, (batch, tokens), without those that are -100."""
    from torch.nn import functional

    return functional.cross_entropy(logits.flatten(0, 1), came.flatten(), ignore_index=IGNORED)


def summed_costs(text: str, costs: Sequence["torch.Tensor"], tokens: int) -> Surprise:
    """Of a text, of which each window gave `token_costs`."""
    nats, foreseen = (sum(float(window[:, i].double().sum()) for window in costs) for i in (0, 1))
    return Surprise(text, nats, tokens, round(foreseen))


def foreseeing_scores(predictions: Sequence[Surprise]) -> Scores:
    """Perplexity and loss (nats) a learnt token, and the share of tokens held to be the likeliest."""
    tokens = sum(prediction.tokens for prediction in predictions) or 1
    loss = sum(prediction.nats for prediction in predictions) / tokens
    accuracy = sum(prediction.foreseen for prediction in predictions) / tokens
    return Scores({"perplexity": math.exp(min(loss, 700.0)), "loss": loss, "accuracy": accuracy})

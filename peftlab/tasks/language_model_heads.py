"""The heads of language models, which the base brings itself: next token, masked tokens, and decoders."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftlab.imports import torch
from peftlab.tasks.heads import Head, TokenHead
from peftlab.tasks.inputs.features import IGNORED, Feature
from peftlab.tasks.metrics.perplexity import mean_loss, token_losses

if TYPE_CHECKING:
    from torch import Tensor

    from peftlab.tasks.inputs.inputs import Batch, Inputs


class LanguageModelHead(TokenHead):
    """The base model's own head, which predicts each next token."""

    auto_class = "AutoModelForCausalLM"
    is_causal_lm = True
    peft_task_type = "CAUSAL_LM"
    output_width = 2

    def loss_terms(self, feature: Feature) -> int:
        """The number of labels that are predicted; nothing predicts the first token."""
        return sum(label != IGNORED for label in feature.labels[1:])

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """The mean cross entropy of each label, predicted from the tokens before it."""
        return mean_loss(logits[:, :-1], labels[:, 1:])

    def outputs(self, logits: "Tensor", labels: "Tensor | None") -> "Tensor":
        """(batch, tokens, 2): the loss of each label in nats, and whether it had the highest probability."""
        if labels is None:
            return logits
        return torch.nn.functional.pad(token_losses(logits[:, :-1], labels[:, 1:]), (0, 0, 1, 0))


class MaskedLanguageModelHead(TokenHead):
    """The base model's own head, which predicts masked tokens."""

    auto_class = "AutoModelForMaskedLM"
    peft_task_type = None  # PEFT has no name for it
    output_width = 2

    def __init__(self, num_candidates: int) -> None:
        super().__init__()
        self.num_candidates = num_candidates

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """The mean cross entropy of masked tokens."""
        return mean_loss(logits, labels)

    def outputs(self, logits: "Tensor", labels: "Tensor | None") -> "Tensor":
        """(batch, tokens, 2): see `token_losses`; without labels (batch, tokens, 2 · candidates): the probabilities of
        the most probable tokens, then their ids."""
        if labels is not None:
            return token_losses(logits, labels)
        candidates = logits.softmax(-1).topk(min(self.num_candidates, logits.shape[-1]))
        return torch.cat([candidates.values, candidates.indices.to(logits.dtype)], dim=-1)


class Seq2SeqHead(Head):
    """The base model's own decoder, which generates the target of a source.

    `start_token` is the token id that the decoder starts with; None takes the last token of each target, as in mBART.
    """

    auto_class = "AutoModelForSeq2SeqLM"
    peft_task_type = "SEQ_2_SEQ_LM"

    def __init__(self, start_token: int | None) -> None:
        super().__init__()
        self.start_token = start_token

    def collate(self, features: Sequence[Feature], inputs: "Inputs") -> "Batch":
        """Padded sources; with targets `labels` and `decoder_input_ids`, each (batch, tokens of the longest target)."""
        batch = inputs.pad(features)
        if any(feature.labels is None for feature in features):
            return batch
        batch["labels"] = self.stack_labels(features, None)
        starts = [[self._start(feature.labels), *feature.labels[:-1]] for feature in features]
        batch["decoder_input_ids"] = _pad_right(starts, inputs.processor.pad_token_id)
        return batch

    def stack_labels(self, features: Sequence[Feature], mask: "Tensor | None") -> "Tensor":
        """(batch, tokens of the longest target), padded with -100."""
        return _pad_right([feature.labels for feature in features], IGNORED)

    def _start(self, target: list[int]) -> int:
        return target[-1] if self.start_token is None else self.start_token

    def loss_terms(self, feature: Feature) -> int:
        """The number of tokens of the target."""
        return len(feature.labels)

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """The mean cross entropy of the targets' tokens."""
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)

    def outputs(self, logits: "Tensor", labels: "Tensor | None") -> "Tensor":
        """(batch, tokens of the longest target): the loss of each token in nats."""
        if labels is None:
            return logits
        functional = torch.nn.functional
        return functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")

    def token_labels(self, feature: Feature) -> list[int] | None:
        """The tokens of the target."""
        return list(feature.labels)


def _pad_right(rows: Sequence[list[int]], value: int) -> "Tensor":
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])

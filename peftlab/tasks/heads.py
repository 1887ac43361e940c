"""Heads: the last layers of a model, the labels and loss they are trained with, and how their outputs are read."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from peftlab.imports import torch
from peftlab.recipe import HeadPooling
from peftlab.tasks.inputs.features import IGNORED, Feature

if TYPE_CHECKING:
    from torch import Tensor

    from peftlab.tasks.inputs.inputs import Batch, Inputs


RARE = 1e-6
"""Least frequency of a class in `Head.constant_logits`."""


class Head(ABC):
    """The head of a task, as one of Transformers' auto classes puts it on a base model.

    `labels` name the outputs of a new head, in order; they are empty if the task uses the base model's own head.
    `problem_type` is the loss as Transformers' configuration calls it. `pooling` is what a `PooledSequenceClassifier`
    pools (peftlab/base/pooled_model.py); None means the architecture's own head. `initial_bias` is that of a new head.
    `weights` of labels and `label_smoothing` change the loss.
    """

    auto_class: ClassVar[str]
    is_causal_lm: ClassVar[bool] = False
    """Whether the head is that of a causal language model, for which inference servers take adapters."""
    peft_task_type: str | None = None
    is_token_level: ClassVar[bool] = False
    """Whether each token has its own label and its own row of the output layer's input."""
    problem_type: str | None = None
    poolings: ClassVar[tuple[HeadPooling, ...]] = ()
    """The values of `pooling` that this head can have; empty if it has no output for the whole input."""
    default_pooling: ClassVar[HeadPooling | None] = None
    """The value of `pooling` if neither recipe nor task says otherwise; None leaves it to the base model."""
    pooling: HeadPooling | None = None
    initial_bias: Sequence[float] | None = None
    weights: Sequence[float] | None = None
    label_smoothing: float = 0.0

    def __init__(self, labels: Sequence[str] = ()) -> None:
        self.labels = list(labels)

    @abstractmethod
    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """The mean loss of a batch, a scalar."""

    def label_weights(self, logits: "Tensor") -> "Tensor | None":
        """`weights` as a tensor (labels,) on the device of `logits`."""
        return None if self.weights is None else logits.new_tensor(self.weights)

    def cross_entropy(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """The mean over the labels that are not ignored, weighted and smoothed; logits (rows, classes)."""
        weights = self.label_weights(logits)
        return torch.nn.functional.cross_entropy(logits, labels, weights, label_smoothing=self.label_smoothing)

    def loss_terms(self, feature: Feature) -> int:
        """The number of terms of which `loss` takes the mean in this feature."""
        return 1

    def collate(self, features: Sequence[Feature], inputs: "Inputs") -> "Batch":
        """The padded inputs of a batch, and `labels` if every feature has labels."""
        batch = inputs.pad(features)
        mask = inputs.mask(batch)
        if all(feature.labels is not None for feature in features):
            batch["labels"] = self.stack_labels(features, mask)
        return batch | self.extra_inputs(features, mask)

    @property
    def reads(self) -> str:
        """What the head reads, as a phrase."""
        return f"the {self.pooling} pooling of the token states" if self.pooling else "what the architecture's own does"

    def extra_inputs(self, features: Sequence[Feature], mask: "Tensor | None") -> "Batch":
        """The inputs of a batch that only this head reads; `mask`, (batch, positions), shows what is no padding."""
        return {}

    def random_extra_inputs(self, mask: "Tensor | None") -> "Batch":
        """`extra_inputs` for a batch of random inputs, on which models are compared or timed."""
        return {}

    def stack_labels(self, features: Sequence[Feature], mask: "Tensor | None") -> "Tensor":
        """The labels of a batch, (batch,) or (batch, labels); `mask`, (batch, positions), shows what is no padding."""
        return torch.tensor([feature.labels for feature in features], device=None if mask is None else mask.device)

    def logits(self, output: Any) -> "Tensor":
        """The logits in the output of a Transformers model, with the rows of the batch first."""
        return output.logits

    def outputs(self, logits: "Tensor", labels: "Tensor | None") -> "Tensor":
        """What `Task.decode` needs of the logits of a batch; `labels` if every feature has labels."""
        return logits

    def split(self, outputs: "Tensor", mask: "Tensor | None") -> "list[Tensor]":
        """The outputs of each row of a batch, without padding."""
        return list(outputs)

    def compute_outputs(self, output: Any, labels: "Tensor | None", mask: "Tensor | None") -> "list[Tensor]":
        """The output of a Transformers model → what `Task.decode` needs, for each row, in fp32 on the CPU."""
        outputs = self.outputs(self.logits(output).float(), labels).cpu()
        return self.split(outputs, None if mask is None else mask.cpu())

    def empty_output(self, feature: Feature) -> "Tensor":
        """Zeros in the shape of the output of a labelled feature."""
        return torch.zeros(len(self.labels))

    def token_labels(self, feature: Feature) -> list[int] | None:
        """The labels of a feature by token; None if the loss is not computed token by token."""
        return None

    def constant_logits(self, targets: "Tensor") -> "Tensor | None":
        """The logits (labels,) that fit `targets` best if they are the same for every input, without class weights.

        `targets` are the labels of all inputs or tokens, (n,) or (n, labels). None if the loss does not compare one
        output vector with one target.
        """
        return None


class SequenceHead(Head):
    """One output vector per input."""

    auto_class = "AutoModelForSequenceClassification"
    peft_task_type: str | None = "SEQ_CLS"
    poolings: ClassVar[tuple[HeadPooling, ...]] = ("mean", "max", "last")

    def __init__(self, labels: Sequence[str], *, pooling: HeadPooling | None = None) -> None:
        super().__init__(labels)
        self.pooling = pooling
        if pooling:
            self.peft_task_type = None  # PEFT's class for SEQ_CLS expects the architecture's own head


class ClassificationHead(SequenceHead):
    """One label per input, trained by cross entropy."""

    problem_type = "single_label_classification"

    def __init__(
        self,
        labels: Sequence[str],
        weights: Sequence[float] | None = None,
        *,
        pooling: HeadPooling | None = None,
    ) -> None:
        super().__init__(labels, pooling=pooling)
        self.weights = weights

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """Cross entropy, weighted by class if there are weights."""
        return self.cross_entropy(logits, labels)

    def constant_logits(self, targets: "Tensor") -> "Tensor | None":
        """The log frequency of each class."""
        return _log_frequencies(targets, len(self.labels))


class MultiLabelHead(ClassificationHead):
    """Any number of labels per input, trained by binary cross entropy of each."""

    problem_type = "multi_label_classification"

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """Binary cross entropy, with weights for the positive class if there are any."""
        targets = labels * (1 - self.label_smoothing) + self.label_smoothing / 2
        weights = self.label_weights(logits)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)

    def constant_logits(self, targets: "Tensor") -> "Tensor | None":
        """The log odds of each label."""
        return targets.float().mean(0).logit(eps=RARE)


class RegressionHead(SequenceHead):
    """One number per input, trained by squared (mse) or absolute error (mae)."""

    problem_type = "regression"

    def __init__(self, loss_name: str, *, pooling: HeadPooling | None = None) -> None:
        super().__init__(["value"], pooling=pooling)
        self.loss_name = loss_name

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """The mean error of standardized numbers."""
        functional = torch.nn.functional
        error = functional.l1_loss if self.loss_name == "mae" else functional.mse_loss
        return error(logits.squeeze(-1), labels.to(logits.dtype))

    def constant_logits(self, targets: "Tensor") -> "Tensor | None":
        """The mean."""
        return targets.float().mean(0, keepdim=True)


class TokenHead(Head):
    """One output vector per token, trained by cross entropy of the tokens that have a label."""

    auto_class = "AutoModelForTokenClassification"
    peft_task_type: str | None = "TOKEN_CLS"
    is_token_level: ClassVar[bool] = True

    @property
    def output_width(self) -> int:
        """How many numbers `outputs` has per token."""
        return len(self.labels)

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """The mean cross entropy of tokens with a label, weighted by label if there are weights."""
        return self.cross_entropy(logits.flatten(0, 1), labels.flatten())

    def loss_terms(self, feature: Feature) -> int:
        """The number of tokens with a label."""
        return sum(label != IGNORED for label in feature.labels)

    def stack_labels(self, features: Sequence[Feature], mask: "Tensor | None") -> "Tensor":
        """(batch, tokens), padded with -100."""
        assert mask is not None
        labels = torch.full_like(mask, IGNORED)
        for row, feature in enumerate(features):
            labels[row, mask[row].bool()] = torch.tensor(feature.labels, dtype=mask.dtype, device=mask.device)
        return labels

    def split(self, outputs: "Tensor", mask: "Tensor | None") -> "list[Tensor]":
        """(tokens, width) of each row, without padding."""
        assert mask is not None
        return [row[tokens.bool()] for row, tokens in zip(outputs, mask, strict=True)]

    def empty_output(self, feature: Feature) -> "Tensor":
        """(tokens, width)."""
        return torch.zeros(len(feature), self.output_width)

    def token_labels(self, feature: Feature) -> list[int] | None:
        """The class of each token."""
        return list(feature.labels)

    def constant_logits(self, targets: "Tensor") -> "Tensor | None":
        """The log frequency of each class; None for a head of the base, which has no classes of its own."""
        return _log_frequencies(targets, len(self.labels)) if self.labels else None


class SpanHead(TokenHead):
    """Start and end logits for each token, for extractive question answering."""

    auto_class = "AutoModelForQuestionAnswering"
    peft_task_type = None  # PEFT's class for QUESTION_ANS drops token_type_ids: BERT would not know the question

    def __init__(self) -> None:
        super().__init__(["start", "end"])

    def logits(self, output: Any) -> "Tensor":
        """(batch, tokens, 2)."""
        return torch.stack([output.start_logits, output.end_logits], dim=-1)

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """Cross entropy over tokens, the mean of start and end."""
        return torch.nn.functional.cross_entropy(logits, labels)  # (batch, classes = tokens, 2), (batch, 2)

    def loss_terms(self, feature: Feature) -> int:
        """One per window."""
        return 1

    def stack_labels(self, features: Sequence[Feature], mask: "Tensor | None") -> "Tensor":
        """(batch, 2): the tokens at which the answer starts and ends."""
        assert mask is not None
        return torch.tensor([list(feature.labels) for feature in features], device=mask.device) + left_padding(mask)

    def token_labels(self, feature: Feature) -> list[int] | None:
        """None: the loss is over windows."""
        return None

    def constant_logits(self, targets: "Tensor") -> "Tensor | None":
        """None: the classes are the tokens of each input."""
        return None


def left_padding(mask: "Tensor") -> "Tensor":
    """The number of padding tokens on the left of each row, (batch, 1), in a mask of shape (batch, tokens)."""
    return mask.long().argmax(1, keepdim=True)


def _log_frequencies(targets: "Tensor", num_classes: int) -> "Tensor":
    frequencies = targets.flatten().bincount(minlength=num_classes) / max(1, targets.numel())
    return frequencies.clamp(min=RARE).log()

"""What every task gives: rows → examples → features → predictions → scores, and the head that goes with it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from peftlab.data import Row
from peftlab.errors import ErrorCollector
from peftlab.tasks.inputs.features import IGNORED, Feature
from peftlab.tasks.inputs.inputs import Inputs
from peftlab.tasks.inputs.text import TextInputs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Example:
    """One row, parsed by its task.

    `num_lost_targets` counts targets that parsing could not keep; `warnings` counts harmless changes by description.
    """

    text: str
    where: str = ""
    num_lost_targets: int = 0
    warnings: Mapping[str, int] = field(default_factory=dict)


InputsClass = type[Inputs]
FeatureSampler = Callable[[Feature, str], Feature]
"""A feature → what it is by a chance that hangs on a text alone."""


@dataclass(frozen=True)
class Continuation:
    """What a model wrote for a text; `finished` says that it came to an end of its own."""

    text: str
    finished: bool


@dataclass(frozen=True)
class Prediction(ABC):
    """What a task says about one text."""

    text: str

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: what was asked first, then the answer."""


@dataclass(frozen=True)
class Confusion:
    """How often each gold label (row) was predicted as each label (column)."""

    labels: list[str]
    counts: list[list[int]]


@dataclass(frozen=True)
class Scores:
    """`values` holds overall scores, `by_label` those of each label or kind of row with `support`, the gold count.

    `signatures` say of a score how it was computed, in the words of the library that did.
    """

    values: dict[str, float]
    by_label: dict[str, dict[str, float]] = field(default_factory=dict)
    confusion: Confusion | None = None
    signatures: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the manifest."""
        plain: dict[str, Any] = {**self.values, "by_label": self.by_label}
        plain |= {"signatures": self.signatures} if self.signatures else {}
        return plain | ({"confusion": asdict(self.confusion)} if self.confusion else {})

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of `as_dict`."""
        values = {k: v for k, v in plain.items() if k not in ("by_label", "confusion", "signatures")}
        confusion = Confusion(**plain["confusion"]) if "confusion" in plain else None
        return cls(values, plain["by_label"], confusion, plain.get("signatures", {}))


def padded_labels(features: Sequence[Feature], width: int, left: bool) -> "torch.Tensor":
    """Labels of each token, (batch, width), padded with -100, on the left or not."""
    import torch

    labels = []
    for feature in features:
        padding = [IGNORED] * (width - len(feature))
        labels.append(padding + feature.labels if left else feature.labels + padding)
    return torch.tensor(labels)


@dataclass(frozen=True)
class ModelContext:
    """What a task stands on: the base's tokenizer and configuration, and inputs of at most `max_length` tokens."""

    inputs: Any
    config: "PreTrainedConfig"
    max_length: int


class Task(ABC):
    """One task type, made from the keys of its recipe section.

    `labels` are the user's (entity types, classes); `head_labels` name the head's outputs; `state` holds numbers that
    come from the data (a mean, a threshold) and travel with the adapter.
    """

    type: ClassVar[str]
    targets: ClassVar[str]
    """What the ledger calls the things a row asks for, in the plural."""
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    """The Transformers class that puts this task's head on a base."""
    peft_task_type: ClassVar[str | None] = "SEQ_CLS"
    per_token: ClassVar[bool] = False
    """Whether the head gives one output a token, or one an input."""
    inputs_class: ClassVar[InputsClass] = TextInputs
    """The modality: loads the processor, pads and identifies features."""
    needs_reference: ClassVar[bool] = False
    """Whether labelled features need the base model's output, with the adapter disabled; see `attach_reference`."""
    writes: ClassVar[bool] = False
    """Whether for what only asks a text is written, token by token: its outcome is then a `Continuation`."""
    chats: ClassVar[bool] = False
    """Whether it answers messages."""
    empty: ClassVar[str] = "no words in it"
    """Why a row of which nothing can be encoded for training is dropped."""

    pipeline_tag: ClassVar[str] = "text-classification"
    """What the Hub calls the task."""
    main_score: str
    """The score that picks the best checkpoint."""
    smaller_is_better: ClassVar[bool] = False
    """Whether the main score is better the smaller it is."""
    problem_type: str | None = None
    """What Transformers' configuration calls the head's loss."""

    def __init__(self, *, labels: list[str] | None = None) -> None:
        self.labels = list(labels or [])
        self.state: dict[str, Any] = {}

    @property
    def input_columns(self) -> tuple[str, ...]:
        """What a row needs for a prediction; a bare string is the first of them."""
        return ("text",)

    @property
    def example_arguments(self) -> str:
        """What to write after `peftlab predict ADAPTER` for a first look."""
        return '"Your text"'

    @property
    def reading(self) -> str:
        """How to read the head's output without peftlab, where that is more than the largest logit."""
        return ""

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments, besides `labels`, that make this task again for prediction."""
        return {}

    @property
    def head_labels(self) -> list[str]:
        """One name for each output of the head, in order; none where the base's own head is used."""
        return self.labels

    @property
    def output_width(self) -> int:
        """How many numbers `outcome` has for a token, or for an input."""
        return len(self.head_labels)

    @abstractmethod
    def read(self, row: Row) -> Example:
        """A row → what it says. Raises RowError with what was expected."""

    @abstractmethod
    def read_input(self, row: Row) -> Example:
        """A row that only asks, as it comes to `predict`. Raises RowError with what was expected."""

    @abstractmethod
    def fit_labels(self, examples: Mapping[str, Sequence[Any]], errors: ErrorCollector) -> None:
        """Fix what comes from the training examples; a label of another split that they lack is a problem."""

    def bind_to_base(
        self, context: ModelContext, examples: Mapping[str, Sequence[Any]], errors: ErrorCollector
    ) -> None:
        """Fix what comes from the base; what does not go with it is a problem, and so are examples, by split, that
        cannot be written for it."""
        return

    @abstractmethod
    def encode_all(
        self, examples: Sequence[Any], inputs: Any, max_length: int, *, training: bool
    ) -> list[list[Feature]]:
        """What the model sees of each example, in inputs of at most `max_length` tokens.

        For prediction as many overlapping windows as the text needs; for training what the task can learn from, with
        `truncated` set where text is left out. None if there is nothing to see. Many texts in one call of the tokenizer
        are split on every core.
        """

    def encode(self, example: Any, inputs: Any, max_length: int, *, training: bool) -> list[Feature]:
        """The features of one example; see `encode_all`."""
        return self.encode_all([example], inputs, max_length, training=training)[0]

    def labels_of(self, example: Any) -> Iterable[str]:
        """The labels that an example has, for tasks with a fixed set of them."""
        return ()

    @abstractmethod
    def count(self, example: Any) -> int:
        """How many targets the example holds."""

    def lost(self, example: Any, features: Sequence[Feature]) -> int:
        """How many of the example's targets are not wholly inside its features."""
        return 0

    def dynamic_masking(self, inputs: Any) -> FeatureSampler | None:
        """How a training feature becomes another in every epoch; None where it stays as it is.

        It costs as many `loss_terms` however it is drawn.
        """
        return None

    def collate(self, features: Sequence[Feature], inputs: Any) -> dict[str, "torch.Tensor"]:
        """Inputs padded as the tokenizer does, each (batch, tokens), and `labels`; see `stack_labels`."""
        tokenizer = inputs.tokenizer
        batch = inputs.pad(features)
        left = tokenizer.padding_side == "left"
        if all(feature.labels is not None for feature in features):
            batch["labels"] = self.stack_labels(features, batch["input_ids"].shape[1], left)
        return batch

    def stack_labels(self, features: Sequence[Feature], width: int, left: bool) -> "torch.Tensor":
        """Labels of a batch padded to `width` tokens, on the left or not: (batch,) or (batch, …)."""
        import torch

        return torch.tensor([feature.labels for feature in features])

    def logits(self, output: Any) -> "torch.Tensor":
        """The head's output: (batch, tokens, head labels), or (batch, head labels)."""
        return output.logits

    def outcome(self, logits: "torch.Tensor", labels: "torch.Tensor | None") -> "torch.Tensor":
        """What `decode` needs of a batch's logits, row by row; `labels` where all of its features have some."""
        return logits

    @property
    def opening(self) -> dict[str, int]:
        """What a text begins with that is written, in the words of Transformers' `generate`."""
        return {}

    def attach_reference(self, feature: Feature, outcome: "torch.Tensor") -> Feature:
        """A labelled feature with what decoding needs of the bare base's outcome of it."""
        return feature

    def endings(self, inputs: Any) -> list[str]:
        """What ends a text that is written."""
        return []

    def loss_terms(self, feature: Feature) -> int:
        """Over how many terms `loss` takes the mean in this feature."""
        return 1

    @abstractmethod
    def loss(self, logits: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
        """The mean loss of a batch."""

    @abstractmethod
    def decode(self, example: Any, features: Sequence[Feature], logits: Sequence["torch.Tensor"]) -> Any:
        """Each feature's `outcome`, of its tokens where the task is `per_token` → the example's prediction."""

    def calibrate(self, examples: Sequence[Any], predictions: Sequence[Any]) -> Sequence[Any]:
        """Learn from the validation split what decoding needs, and decide the predictions again by it."""
        return predictions

    @abstractmethod
    def score(self, examples: Sequence[Any], predictions: Sequence[Any]) -> Scores:
        """Compare decoded predictions with what the examples say."""

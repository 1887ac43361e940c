"""What every task gives: rows → examples → features → predictions → scores, and the head that goes with it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from peftlab.data import Row
from peftlab.errors import Problems

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Example:
    """A row understood by its task. `lost` counts targets that reading could not keep, `notes` harmless changes."""

    text: str
    where: str = ""
    lost: int = 0
    notes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Feature:
    """An example, or one window of it, as the model takes it.

    `inputs` maps the model's argument names to one value a token; `labels` holds one class a token, -100 where the
    loss does not look; `positions` pairs (token, word) for each token at which a word is decided.
    """

    inputs: dict[str, list[int]]
    labels: list[int]
    positions: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.inputs["input_ids"])


@dataclass(frozen=True)
class Prediction(ABC):
    """What a task says about one text."""

    text: str

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, `text` first."""


@dataclass(frozen=True)
class Scores:
    """`values` holds the overall scores, `by_label` the same per label with `support`, the gold count."""

    values: dict[str, float]
    by_label: dict[str, dict[str, float]]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the manifest."""
        return {**self.values, "by_label": self.by_label}


class Task(ABC):
    """One task type. `labels` are the user's (entity types, classes); `head_labels` name the head's outputs."""

    type: ClassVar[str]
    targets: ClassVar[str]
    """What the ledger calls the things a row asks for, in the plural."""
    main_score: ClassVar[str]
    """The score that picks the best checkpoint; larger is better."""
    auto_class: ClassVar[str]
    """The Transformers class that puts this task's head on a base."""
    peft_task_type: ClassVar[str]

    labels: list[str]

    @property
    @abstractmethod
    def head_labels(self) -> list[str]:
        """One name for each output of the head, in order."""

    @abstractmethod
    def read(self, row: Row) -> Example:
        """A row → what it says. Raises RowError with what was expected."""

    @abstractmethod
    def read_text(self, text: str) -> Example:
        """A bare text, as it comes to `predict`."""

    @abstractmethod
    def learn_labels(self, examples: Mapping[str, Sequence[Any]], problems: Problems) -> None:
        """Fix the labels from the training examples; a label of another split that training lacks is a problem."""

    @abstractmethod
    def encode(
        self, example: Any, tokenizer: "PreTrainedTokenizerBase", max_length: int, *, cut: bool
    ) -> list[Feature]:
        """One feature cut at `max_length` tokens, or as many overlapping windows as it needs; none if it is empty."""

    @abstractmethod
    def count(self, example: Any) -> int:
        """How many targets the example holds."""

    @abstractmethod
    def lost(self, example: Any, features: Iterable[Feature]) -> int:
        """How many of the example's targets are not wholly inside its features."""

    @abstractmethod
    def is_cut(self, example: Any, features: Iterable[Feature]) -> bool:
        """Whether any of the example's text is outside its features."""

    @abstractmethod
    def collate(self, features: Sequence[Feature], tokenizer: "PreTrainedTokenizerBase") -> dict[str, "torch.Tensor"]:
        """Features → padded tensors, each (batch, tokens)."""

    @abstractmethod
    def decode(self, example: Any, features: Sequence[Feature], logits: Sequence["torch.Tensor"]) -> Any:
        """The model's outputs for one example's features, each (tokens, head labels) → its prediction."""

    @abstractmethod
    def score(self, examples: Sequence[Any], predictions: Sequence[Any]) -> Scores:
        """Compare decoded predictions with what the examples say."""

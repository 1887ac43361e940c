"""Tasks: rows → examples → features → outputs → predictions → scores.

A task holds what is its own; what varies by kind lies in the strategy objects that it has: its inputs (modality), head,
outputs, metric and targets.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from peftlab.data import Row
from peftlab.errors import ErrorCollector
from peftlab.tasks.inputs.features import Feature
from peftlab.tasks.inputs.inputs import Inputs
from peftlab.tasks.inputs.text import TextInputs
from peftlab.tasks.metrics.calibration import Calibration
from peftlab.tasks.outputs import Outputs

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from peftlab.tasks.heads import Head

InputsClass = type[Inputs]
FeatureSampler = Callable[[Feature, str], Feature]
"""A training feature and the text that seeds the random draw → the feature for this epoch."""


@dataclass(frozen=True)
class Example:
    """One row, parsed by its task.

    `num_lost_targets` counts targets that parsing could not keep; `warnings` counts harmless changes by description.
    """

    text: str
    where: str = ""
    num_lost_targets: int = 0
    warnings: Mapping[str, int] = field(default_factory=dict)

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts that the model reads."""
        return (self.text,)


@dataclass(frozen=True)
class Prediction(ABC):
    """The prediction of a task for one example."""

    text: str

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the input first, then the prediction."""


@dataclass(frozen=True)
class Confusion:
    """How often each gold label (row) was predicted as each label (column)."""

    labels: list[str]
    counts: list[list[int]]


@dataclass(frozen=True)
class Scores:
    """`values` holds overall scores, `by_label` those of each label or kind of row with `support`, the gold count.

    `signatures` say of a score how it was computed, in the words of the library that did. `calibration` compares
    probabilities with frequencies, if the task has any.
    """

    values: dict[str, float]
    by_label: dict[str, dict[str, float]] = field(default_factory=dict)
    confusion: Confusion | None = None
    signatures: dict[str, str] = field(default_factory=dict)
    calibration: Calibration | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the manifest."""
        plain: dict[str, Any] = {**self.values, "by_label": self.by_label}
        plain |= {"signatures": self.signatures} if self.signatures else {}
        plain |= {"calibration": asdict(self.calibration)} if self.calibration else {}
        return plain | ({"confusion": asdict(self.confusion)} if self.confusion else {})

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of `as_dict`."""
        values = {k: v for k, v in plain.items() if k not in ("by_label", "calibration", "confusion", "signatures")}
        confusion = Confusion(**plain["confusion"]) if "confusion" in plain else None
        calibration = Calibration(**plain["calibration"]) if "calibration" in plain else None
        return cls(values, plain["by_label"], confusion, plain.get("signatures", {}), calibration)


def _no_labels(example: Any) -> Iterable[str]:
    return ()


def _none_lost(example: Any, features: Sequence[Feature]) -> int:
    return 0


def _no_sampler(inputs: Any) -> FeatureSampler | None:
    return None


def _no_temperature(examples: Any, features: Any, outputs: Any) -> None:
    return None


def _unchanged(examples: Sequence[Any], predictions: Sequence[Any]) -> Sequence[Any]:
    return predictions


@dataclass(frozen=True)
class Targets:
    """The training targets of examples, as the ledger counts them.

    `noun` is its name in the plural. `count` gives the targets of an example, `count_lost` those that are not
    completely inside its features, `labels_of` its labels if there is a fixed set of them. `empty_reason` says why a
    row without any feature for training is dropped. `sampler` gives a function that redraws a feature in each epoch,
    without changing its number of loss terms, as dynamic masking does; None if features stay the same.
    """

    noun: str
    count: Callable[[Any], int]
    count_lost: Callable[[Any, Sequence[Feature]], int] = _none_lost
    labels_of: Callable[[Any], Iterable[str]] = _no_labels
    empty_reason: str = "no words in it"
    sampler: Callable[[Any], FeatureSampler | None] = _no_sampler

    @property
    def has_labels(self) -> bool:
        """Whether examples have labels from a fixed set."""
        return self.labels_of is not _no_labels


@dataclass(frozen=True)
class Metric:
    """How predictions are scored; `name` is the score that chooses the best checkpoint.

    `score` compares predictions with examples. `calibrate` fits what decoding needs to the validation split and returns
    the predictions decoded again. `fit_temperature` fits, after training, the temperature of probabilities to the
    examples, features and outputs of the validation split.
    """

    name: str
    score: Callable[[Any, Any], Scores]
    greater_is_better: bool = True
    calibrate: Callable[[Any, Any], Sequence[Any]] = _unchanged
    fit_temperature: Callable[[Any, Any, Any], None] = _no_temperature


@dataclass(frozen=True)
class ModelContext:
    """The base model as a task sees it: its inputs, its configuration, and the longest input (tokens for text).

    `end_tokens` are the ids of the tokens that end a text by the base's `generation_config`.
    """

    inputs: Any
    config: "PreTrainedConfig"
    max_length: int
    end_tokens: Sequence[int] = ()


class Task(ABC):
    """One task, made from the keys of its recipe section.

    `labels` are the user's (entity types, classes). `state` holds what was fitted to the data or taken from the base
    model (a mean, a threshold, a chat template, the pooling of the head) and is published with the adapter.
    """

    type: ClassVar[str]
    inputs_class: ClassVar[InputsClass] = TextInputs
    """The modality of the model's inputs."""
    metric: Metric
    targets: Targets

    def __init__(self, *, labels: list[str] | None = None) -> None:
        self.labels = list(labels or [])
        self.state: dict[str, Any] = {}

    @property
    @abstractmethod
    def head(self) -> "Head":
        """The head, with its labels and loss."""

    @property
    def outputs(self) -> Outputs:
        """How outputs are computed: by a forward pass, or by generating text."""
        return Outputs()

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments, besides `labels`, that build this task again for prediction."""
        return {}

    @abstractmethod
    def read(self, row: Row) -> Example:
        """A labelled row → an example.

        Raises:
            RowError: the row does not have the expected columns and values.
        """

    @abstractmethod
    def read_input(self, row: Row) -> Example:
        """A row without targets, as `predict` gets it → an example.

        Raises:
            RowError: the row does not have the expected columns and values.
        """

    @abstractmethod
    def fit_labels(self, examples: Mapping[str, Sequence[Any]], errors: ErrorCollector) -> None:
        """Fit labels and state to the training examples; labels that only other splits have are errors."""

    def bind_to_base(
        self, context: ModelContext, examples: Mapping[str, Sequence[Any]], errors: ErrorCollector
    ) -> None:
        """Take from the base model what the task needs; a base model that does not fit the task is an error.

        `examples` are those of each split; it is an error if they cannot be written for this base model.
        """
        return

    @abstractmethod
    def encode(self, examples: Sequence[Any], inputs: Any, max_length: int, *, training: bool) -> list[list[Feature]]:
        """The features of each example, of at most `max_length`, in one call of the processor.

        For prediction long examples have as many overlapping windows as they need. For training they are truncated. An
        example may have no feature if there is nothing to see.
        """

    @abstractmethod
    def decode(self, example: Any, features: Sequence[Feature], logits: Sequence[Any]) -> Any:
        """The prediction for an example from the outputs of its features; see `Head.outputs`."""

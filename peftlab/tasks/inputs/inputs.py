"""Inputs: everything that depends on the modality of a model's inputs, such as text or images.

A task names its `Inputs` class. `Inputs.load` reads the base model's processor (a tokenizer for text); the object then
pads features into batches, measures them and identifies its processor. Code outside `tasks/` handles features and
batches only through this interface and never looks at the names of model inputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

from peftlab.tasks.inputs.coverage import Coverage
from peftlab.tasks.inputs.features import Feature

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NO_LENGTH_LIMIT = 10**20
"""From this length on, Transformers means that an input may have any length."""
Batch = dict[str, "torch.Tensor"]
"""Keyword arguments of a model, each tensor with the rows of the batch first."""


class ProcessorFiles(Protocol):
    """Where a base model's processor is read from."""

    @property
    def model(self) -> str:
        """The name of the base model."""

    @property
    def folder(self) -> Path:
        """The folder of its files."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Its configuration."""


class LossSegment(NamedTuple):
    """A readable part of a feature: its text, its length, and whether it is in the loss."""

    text: str
    length: int
    in_loss: bool


class Inputs(ABC):
    """The inputs of one modality for one base model."""

    feature_class: ClassVar[type[Feature]] = Feature
    """The class of the features that tasks make for these inputs."""
    processor_name: ClassVar[str] = "processor"
    """What messages call the processor."""
    packages: ClassVar[tuple[str, ...]] = ("transformers",)
    """The packages whose versions features depend on."""

    @classmethod
    @abstractmethod
    def load(cls, files: ProcessorFiles, *, trust_remote_code: bool = False) -> Self:
        """Load the base model's processor.

        Raises:
            IntegrityError: the base model has no processor that can be used.
        """

    @classmethod
    def from_loaded(cls, other: "Inputs") -> Self | None:
        """Share the processor of `other` if it is prepared in the same way, else return None."""
        return None

    @property
    @abstractmethod
    def processor(self) -> Any:
        """The tokenizer, image processor or feature extractor; None if the modality needs none."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """The sha256 of the processor's rules; adapters only run with the processor that they were tuned with."""

    @property
    def cache_key(self) -> list[Any]:
        """Everything else that features depend on, as plain values, for the feature cache."""
        return [type(self).__qualname__]

    def max_length(self, model: "PreTrainedModel") -> int:
        """The longest input that processor and model take, `NO_LENGTH_LIMIT` or more if there is none."""
        return NO_LENGTH_LIMIT

    def configure_model(self, model: "PreTrainedModel") -> None:  # noqa: B027  # most processors need nothing
        """Set in the model's configuration what its head must know about the processor; nothing by default."""

    def coverage(self, texts: Sequence[str]) -> Coverage:
        """How much of texts the processor knows; nothing is counted if it does not read text."""
        return Coverage()

    def has_unknown(self, features: Sequence[Feature]) -> bool:
        """Whether features hold a part that the processor does not know, or nothing but special parts."""
        return False

    def conflict(self, model: "PreTrainedModel") -> str:
        """Why the processor and the model do not belong together, as a sentence; empty if nothing is known."""
        return ""

    @abstractmethod
    def pad(self, features: Sequence[Feature]) -> Batch:
        """Pad the inputs of features to a batch for the model, without labels."""

    def widen(self, batch: Mapping[str, "torch.Tensor"], length: int) -> Batch:
        """The same rows with more padding, up to `length`; unchanged if inputs are not padded."""
        return dict(batch)

    def mask(self, batch: Mapping[str, "torch.Tensor"]) -> "torch.Tensor | None":
        """Which positions of a batch are no padding, (batch, positions); None if inputs are not padded."""
        return None

    @abstractmethod
    def probe(self, model: "PreTrainedModel", rows: int, length: int) -> Batch:
        """A small valid batch for `model`, on its device; `length` is ignored where inputs have a fixed size."""

    def random_batch(self, model: "PreTrainedModel", rows: int, length: int) -> Batch:
        """Random inputs on which models are compared or timed, the same in each call; by default those of `probe`."""
        return self.probe(model, rows, length)

    def pack(self, features: Sequence[Feature], length: int) -> Batch:
        """Put several features into each row of a batch, of at most `length` positions, with labels.

        Raises:
            TypeError: inputs of this modality cannot be packed.
        """
        raise TypeError(f"{type(self).__name__} cannot be packed")

    def stream_decoder(self) -> Any:
        """A Transformers streamer that turns generated tokens into text.

        Raises:
            TypeError: nothing is generated for this modality.
        """
        raise TypeError(f"{type(self).__name__} are not generated")

    def loss_segments(self, feature: Feature) -> Iterator[LossSegment]:
        """The parts of a feature in readable form, each wholly in the loss or wholly not.

        Raises:
            TypeError: inputs of this modality cannot be printed.
        """
        raise TypeError(f"{type(self).__name__} cannot be printed")

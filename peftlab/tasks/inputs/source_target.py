"""Source and target texts, for models with an encoder and a decoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from peftlab.tasks.inputs.features import Feature
from peftlab.tasks.inputs.inputs import Batch
from peftlab.tasks.inputs.text import PlainTextInputs


@dataclass(frozen=True)
class SourceFeature(Feature):
    """The source as `inputs`, the target's token ids as `labels`; `positions` is empty if the target is truncated."""

    def __len__(self) -> int:
        """The number of tokens of source and target."""
        return super().__len__() + len(self.labels or ())


class SourceTargetInputs(PlainTextInputs):
    """Sources are always padded on the right."""

    feature_class = SourceFeature

    def pad(self, features: Sequence[Feature], side: Literal["left", "right"] | None = "right") -> Batch:
        """See `TextInputs.pad`."""
        return super().pad(features, side)

    def loss_mask(self, feature: Feature) -> list[tuple[int, bool]]:
        """The tokens of the source, which are not in the loss, then those of the target, which are."""
        source = [(token, False) for token in feature.inputs["input_ids"]]
        return [*source, *((token, True) for token in feature.labels)]

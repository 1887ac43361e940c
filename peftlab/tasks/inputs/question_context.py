"""A question with a window of its context."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from peftlab.tasks.inputs.features import Feature
from peftlab.tasks.inputs.text import TextInputs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Window(Feature):
    """A question with one window of the context.

    `offsets` gives (start, end) in characters of the context for each of its tokens, None for other tokens. `null` is
    the token that means no answer.
    """

    offsets: tuple[tuple[int, int] | None, ...] = ()
    null: int = 0

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """See `Feature.from_dict`."""
        offsets = tuple(offset and tuple(offset) for offset in plain["offsets"])
        return super().from_dict({**plain, "labels": tuple(plain["labels"]), "offsets": offsets})


class QuestionContextInputs(TextInputs):
    """Questions with windows of their contexts."""

    feature_class = Window


def truncate_texts(texts: list[str], tokenizer: "PreTrainedTokenizerBase", budget: int) -> list[tuple[str, int]]:
    """The longest beginning of each text that has at most `budget` tokens, and its number of tokens."""

    def offsets_of(parts: list[str]) -> list[list[tuple[int, int]]]:
        return tokenizer(parts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]

    shortened = []
    for text, offsets in zip(texts, offsets_of(texts) if texts else [], strict=True):
        while len(offsets) > budget:
            text = text[: min(offsets[budget][0], len(text) - 1)]
            (offsets,) = offsets_of([text])
        shortened.append((text, len(offsets)))
    return shortened

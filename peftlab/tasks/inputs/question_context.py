"""A question with a window of its context."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from peftlab.tasks.inputs.features import Feature
from peftlab.tasks.inputs.text import TextInputs


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

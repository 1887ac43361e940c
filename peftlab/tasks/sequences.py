"""A text, or a pair of texts, as inputs of the whole of which one thing is said."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftlab.data import Row
from peftlab.tasks.columns import chosen_form, question_text
from peftlab.tasks.contract import Example, Feature, Prediction

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextPair(Example):
    """A text, and the second one of a pair."""

    text_pair: str | None = None


@dataclass(frozen=True)
class PairPrediction(Prediction):
    """What is said of a text, or of a pair."""

    text_pair: str | None

    @property
    def asked(self) -> dict[str, str]:
        """`text`, and `text_pair` where there is one."""
        return {"text": self.text} | ({} if self.text_pair is None else {"text_pair": self.text_pair})


def read_pair(row: Row) -> TextPair:
    """`text` and, where there is one, `text_pair` of a row that only asks. Raises RowError."""
    chosen_form(row, ("text",))
    return TextPair(question_text(row, "text"), row.where, text_pair=second_text(row, question_text))


def second_text(row: Row, read_text: Callable[[Row, str], str]) -> str | None:
    """`text_pair`, if the row has one. Raises RowError."""
    return None if row.fields.get("text_pair") is None else read_text(row, "text_pair")


def encode_sequence(
    text: str,
    text_pair: str | None,
    labels: Any,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    *,
    training: bool,
) -> list[Feature]:
    """One feature cut at `max_length` tokens for training, every overlapping window of it for prediction.

    Of a pair the longer text is cut first; where both are too long, each window of one meets each of the other.
    """
    room = max_length - tokenizer.num_special_tokens_to_add(pair=text_pair is not None)
    encoded = tokenizer(
        text,
        text_pair,
        truncation="longest_first",
        max_length=max_length,
        stride=room // 8,  # in tokens; even half of the room, for one text of a pair, holds it
        return_overflowing_tokens=True,
        verbose=False,
    )
    windows = len(encoded["input_ids"])
    inputs = [
        {name: encoded[name][i] for name in encoded if name != "overflow_to_sample_mapping"} for i in range(windows)
    ]
    if training:
        return [Feature(inputs[0], labels, cut=windows > 1)]
    return [Feature(window, labels) for window in inputs]

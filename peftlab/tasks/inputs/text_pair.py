"""Sequence-level inputs: a text or a pair of texts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.errors import ErrorCollector
from peftlab.tasks.inputs.columns import MAPPING, chosen_form, optional_text_column
from peftlab.tasks.inputs.features import Feature
from peftlab.tasks.task import Example, Prediction

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextPair(Example):
    """A text, and the second one of a pair."""

    text_pair: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """One or two texts."""
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)


@dataclass(frozen=True)
class TextPairPrediction(Prediction):
    """What is said of a text, or of a pair."""

    text_pair: str | None

    @property
    def input_fields(self) -> dict[str, str]:
        """`text`, and `text_pair` where there is one."""
        return {"text": self.text} | ({} if self.text_pair is None else {"text_pair": self.text_pair})


def read_pair(row: Row, *, pairs: bool = False) -> TextPair:
    """`text` and, where there is one, `text_pair` of a row that only asks; `pairs` as in `second_text`.

    Raises:
        RowError: a column is missing, or holds no text.
    """
    chosen_form(row, ("text",))
    second = second_text(row, optional_text_column, pairs=pairs)
    return TextPair(optional_text_column(row, "text"), row.where, text_pair=second)


def second_text(row: Row, read_text: Callable[[Row, str], str], *, pairs: bool = False) -> str | None:
    """`text_pair`, if the row has one.

    `pairs` says that all training rows were pairs.

    Raises:
        RowError: it holds no text, or the row is no pair and the training rows were.
    """
    second = None if row.fields.get("text_pair") is None else read_text(row, "text_pair")
    if pairs and second is None:
        mapping = MAPPING.format(ours="text_pair", theirs="your-name")
        found = ", ".join(row.fields)
        raise RowError(
            f"expected text_pair, the second text of a pair (--context), as in training; found {found}. {mapping}"
        )
    return second


def find_pairs(examples: Mapping[str, Sequence[TextPair]], errors: ErrorCollector) -> dict[str, bool]:
    """`{"pairs": True}` if all training rows are pairs, for the state of a task.

    If all training rows are pairs, or none is, rows of other splits that differ are errors.
    """
    kinds = {example.text_pair is not None for example in examples["train"]}
    if len(kinds) != 1:
        return {}
    [pairs] = kinds
    for split, rows in examples.items():
        others = [row for row in rows if (row.text_pair is not None) != pairs]
        if others:
            what = ("single texts", "pairs") if pairs else ("pairs", "single texts")
            errors.add(
                f"{len(others)} of {len(rows)} rows are {what[0]} (first {others[0].where}), but the training rows are "
                f"{what[1]}.",
                key=f"data.{split}",
                hint="Map the second column under data.columns, as in 'text_pair: your-name'." if pairs else "",
            )
    return {"pairs": True} if pairs else {}


def pair_example(task: Any) -> str:
    """Arguments for a first `peftlab predict ADAPTER`."""
    return '"Your text" --context "The second text"' if task.state.get("pairs") else '"Your text"'


def encode_sequences(
    texts: Sequence[tuple[str, str | None]],
    labels: Sequence[Any],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    *,
    training: bool,
    offsets: Sequence[tuple[int, ...]] | None = None,
) -> list[list[Feature]]:
    """For training one feature a text or pair, cut at `max_length` tokens; for prediction every overlapping window.

    Of a pair the longer text is cut first; where both are too long, each window of one meets each of the other.
    `offsets` are characters of the first texts: `Feature.positions` pairs the token at each with its number.
    """
    made: list[list[Feature]] = [[] for _ in texts]
    for paired in (False, True):
        chosen = [i for i, (_, second) in enumerate(texts) if (second is not None) == paired]
        if not chosen:
            continue
        encoded = _encode_windows([texts[i] for i in chosen], paired, tokenizer, max_length)
        for i, numbers in zip(chosen, numbers_of_windows(encoded, len(chosen)), strict=True):
            kept = numbers[:1] if training else numbers
            if training and not encoded["input_ids"][kept[0]]:
                continue  # nothing to see
            made[i] = [
                Feature(
                    fill_empty(inputs_of(encoded, number), tokenizer),
                    labels[i],
                    _positions(encoded, number, offsets[i]) if offsets else (),
                    truncated=len(kept) < len(numbers),
                )
                for number in kept
            ]
    return made


def _positions(encoded: "BatchEncoding", number: int, offsets: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The token at each character of the first text; for a character that was cut off, the last token of the text."""
    tokens = [_token_at(encoded, number, offset) for offset in offsets]
    last = max((i for i, sequence in enumerate(encoded.sequence_ids(number)) if sequence == 0), default=0)
    return tuple((last if token is None else token, i) for i, token in enumerate(tokens))


def _token_at(encoded: "BatchEncoding", number: int, offset: int) -> int | None:
    """The last token with a character: a blank before the text may be a token with the offset of the first letter."""
    token = cast(int | None, encoded.char_to_token(number, offset, sequence_index=0))
    while token is not None and token + 1 < len(encoded["input_ids"][number]):
        following = encoded.token_to_chars(number, token + 1)
        if following is None or not following.start <= offset < following.end:
            break
        token += 1
    return token


def _encode_windows(
    texts: Sequence[tuple[str, str | None]], paired: bool, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> "BatchEncoding":
    """Every window of each text, or of each pair; at least one text."""
    budget = max_length - tokenizer.num_special_tokens_to_add(pair=paired)
    return tokenizer(
        [first for first, _ in texts],
        [second for _, second in texts] if paired else None,
        truncation="longest_first",
        max_length=max_length,
        stride=budget // 8,  # in tokens; even half of the room, for one text of a pair, holds it
        return_overflowing_tokens=True,
        verbose=False,
    )


def numbers_of_windows(encoded: "BatchEncoding", texts: int) -> list[list[int]]:
    """Which inputs of a batch with overflowing tokens are those of each of its texts."""
    numbers: list[list[int]] = [[] for _ in range(texts)]
    for window, text in enumerate(encoded["overflow_to_sample_mapping"]):
        numbers[text].append(window)
    return numbers


def fill_empty(inputs: dict[str, list[int]], tokenizer: "PreTrainedTokenizerBase") -> dict[str, list[int]]:
    """Inputs with at least one token: models cannot compute with none, as a tokenizer without special tokens gives."""
    if inputs["input_ids"]:
        return inputs
    special = (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    token = next((token for token in special if token not in (None, tokenizer.pad_token_id)), tokenizer.pad_token_id)
    fills = {"input_ids": cast(int, token or 0), "attention_mask": 1}
    return {name: [fills.get(name, 0)] for name in inputs}


def inputs_of(encoded: "BatchEncoding", number: int) -> dict[str, list[int]]:
    """One input of a batch, without what is not for the model."""
    extra = ("overflow_to_sample_mapping", "offset_mapping")
    return {name: values[number] for name, values in encoded.items() if name not in extra}

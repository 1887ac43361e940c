"""Rendered texts as features with labels, and the parts of a feature that is too long for the model."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from peftlab.tasks.chat.template import RenderedText, tokens_in_spans
from peftlab.tasks.inputs.features import IGNORED, Feature
from peftlab.tasks.inputs.text_pair import inputs_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenize_rendered(
    templated: Sequence[bool], written: Sequence[RenderedText], tokenizer: "PreTrainedTokenizerBase"
) -> list[Feature]:
    """Tokenize the full texts; the tokenizer adds special tokens only to texts without a chat template."""
    made: dict[int, Feature] = {}
    for kind in (True, False):
        chosen = [i for i, by_template in enumerate(templated) if by_template == kind]
        if chosen:
            texts = [written[i].text for i in chosen]
            encoded = tokenizer(texts, add_special_tokens=not kind, return_offsets_mapping=True, verbose=False)
            for place, i in enumerate(chosen):
                made[i] = _feature(inputs_of(encoded, place), encoded["offset_mapping"][place], written[i].loss_spans)
    return [made[i] for i in range(len(written))]


def _feature(
    inputs: dict[str, list[int]], offsets: Sequence[tuple[int, int]], loss_spans: Sequence[tuple[int, int]]
) -> Feature:
    """A feature whose `positions` are the last token of each answer, and the number of the answer."""
    within = tokens_in_spans(loss_spans, offsets)
    labels = [token if chosen else IGNORED for token, chosen in zip(inputs["input_ids"], within, strict=True)]
    ends = [(_last_within(offsets, end), number) for number, (_, end) in enumerate(loss_spans)]
    return Feature(inputs, labels, ends)


def _last_within(offsets: Sequence[tuple[int, int]], end: int) -> int:
    """The token with the last character before `end`."""
    return max(i for i, (start, stop) in enumerate(offsets) if start < end and start < stop)


def slice_feature(full: Feature, start: int, end: int, known: int = 0) -> Feature:
    """The tokens from `start` to `end` of a feature; labels before `known` are ignored."""
    inputs = {name: values[start:end] for name, values in full.inputs.items()}
    labels = [IGNORED if i < known else label for i, label in enumerate(full.labels[start:end], start)]
    ends = [(token - start, answer) for token, answer in full.positions if start <= token < end]
    return Feature(inputs, labels, ends, truncated=end < len(full))


def split_into_chunks(full: Feature, length: int) -> Iterator[Feature]:
    """Split a feature into chunks; the last token of a chunk is the first of the next, so that all tokens are
    predicted."""
    for start in range(0, max(1, len(full) - 1), length - 1):
        yield replace(slice_feature(full, start, start + length), truncated=False)


def split_into_scored_windows(full: Feature, length: int) -> Iterator[Feature]:
    """Split a feature into windows that overlap by half; each label is in one window only."""
    known = 0
    for start in range(0, max(1, len(full) - length // 2), max(1, length // 2)):
        yield replace(slice_feature(full, start, start + length, known), truncated=False)
        known = start + length

"""Rendered texts as features with labels, and the parts of a feature that is too long for the model."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from peftlab.tasks.chat.template import RenderedText, tokens_in_spans
from peftlab.tasks.inputs.features import IGNORED, Feature
from peftlab.tasks.inputs.lost_characters import UNKNOWN_IN_INPUT, UNKNOWN_IN_TARGET, LostCharacters
from peftlab.tasks.inputs.segments import Tokens, special_tokens_before, split_text, tokenize_segments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONSTANT_INPUTS = {"attention_mask": 1, "token_type_ids": 0}
"""Other inputs of language models, with the value that they have for every token."""

SPLIT_BORDER = "answer whose first token would merge with its prompt, tokenized apart as in prediction"


def tokenize_rendered(
    templated: Sequence[bool], written: Sequence[RenderedText], tokenizer: "PreTrainedTokenizerBase"
) -> list[Feature]:
    """Tokenize the full texts, each answer as the continuation of its prompt.

    The tokens that the tokenizer writes before a text are added only where no chat template was used, and where the
    text does not have them. Those that it writes behind a text are left out: answers end with their own end.
    """
    before, lost = special_tokens_before(tokenizer), LostCharacters(tokenizer)
    texts = tokenize_segments([split_text(one.text, one.borders) for one in written], tokenizer)
    features = [
        _feature(_with_special(text.tokens, [] if by_template else before), one.loss_spans, text.num_split, tokenizer)
        for by_template, one, text in zip(templated, written, texts, strict=True)
    ]
    return [_without_lost(feature, one, lost) for feature, one in zip(features, written, strict=True)]


def _without_lost(feature: Feature, written: RenderedText, lost: LostCharacters) -> Feature:
    """Remove the ends of answers with characters that the tokenizer cannot write, so that they count as lost."""
    if feature.labels is None or not written.loss_spans:
        return feature
    borders = [0, *(place for span in written.loss_spans for place in span), len(written.text)]
    parts = [written.text[start:end] for start, end in pairwise(borders)]
    lost_answers = {number for number, part in enumerate(parts[1::2]) if lost.any_in(part)}
    warnings = [UNKNOWN_IN_TARGET] if lost_answers else []
    warnings += [UNKNOWN_IN_INPUT] if any(map(lost.any_in, parts[::2])) else []
    ends = [(token, number) for token, number in feature.positions if number not in lost_answers]
    return replace(feature, positions=ends, warnings=[*feature.warnings, *warnings])


def _with_special(tokens: Tokens, before: list[int]) -> Tokens:
    has_them = [token for token, _ in tokens[: len(before)]] == before
    return tokens if has_them else [*((token, (0, 0)) for token in before), *tokens]


def _feature(
    tokens: Tokens, loss_spans: Sequence[tuple[int, int]], num_split: int, tokenizer: "PreTrainedTokenizerBase"
) -> Feature:
    """A feature whose `positions` are the last token of each answer, and the number of the answer."""
    token_ids, offsets = [token for token, _ in tokens], [offset for _, offset in tokens]
    inputs = {"input_ids": token_ids} | {
        name: [value] * len(tokens) for name, value in CONSTANT_INPUTS.items() if name in tokenizer.model_input_names
    }
    within = tokens_in_spans(loss_spans, offsets)
    labels = [token if chosen else IGNORED for token, chosen in zip(token_ids, within, strict=True)]
    ends = [(_last_within(offsets, end), number) for number, (_, end) in enumerate(loss_spans)]
    return Feature(inputs, labels, ends, warnings=[SPLIT_BORDER] if num_split else [])


def _last_within(offsets: Sequence[tuple[int, int]], end: int) -> int:
    """The token with the last character before `end`."""
    return max(i for i, (start, stop) in enumerate(offsets) if start < end and start < stop)


def slice_feature(full: Feature, start: int, end: int, known: int = 0) -> Feature:
    """The tokens from `start` to `end` of a feature; labels before `known` are ignored."""
    inputs = {name: values[start:end] for name, values in full.inputs.items()}
    labels = [IGNORED if i < known else label for i, label in enumerate(full.labels[start:end], start)]
    ends = [(token - start, answer) for token, answer in full.positions if start <= token < end]
    return Feature(inputs, labels, ends, truncated=end < len(full), warnings=full.warnings)


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

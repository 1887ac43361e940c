"""Tokenize a text in segments, so that the tokens of a prompt are always the beginning of those of the full text.

Tokenizers merge characters across the end of a prompt: `A: ` and `the` are other tokens than `A: the`. A segment is
therefore tokenized as the continuation of the one before it, and never changes the tokens of that one.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = list[tuple[int, tuple[int, int]]]
"""Token ids, each with its (start, end) in the text."""
CONTEXTS = ("\n", "a", ":", "1", ".")
"""Texts before a segment whose own tokens do not merge with it: the first one that fits is used."""


class SegmentedText(NamedTuple):
    """The tokens of a text; `num_split` counts borders at which the text as a whole has other tokens."""

    tokens: Tokens
    num_split: int


def split_text(text: str, borders: Iterable[int]) -> list[str]:
    """Split a text at `borders`; the first segment may be empty, the others are not."""
    inside = sorted({border for border in borders if border < len(text)})
    return [text[start:end] for start, end in zip([0, *inside], [*inside, len(text)], strict=True)]


def tokenize_segments(texts: Sequence[Sequence[str]], tokenizer: "PreTrainedTokenizerBase") -> list[SegmentedText]:
    """Tokenize texts that are split into segments, without special tokens."""
    pairs = [(one, next_one) for segments in texts for one, next_one in pairwise(segments)]
    alone = dict.fromkeys(segment for segments in texts for segment in (segments[:-1] or segments))
    tokens = dict(zip(alone, _tokenize(list(alone), tokenizer), strict=True))
    joined = _tokenize([f"{one}{next_one}" for one, next_one in pairs], tokenizer)
    continued = [_continuation(tokens[one], both, len(one)) for (one, _), both in zip(pairs, joined, strict=True)]
    split = [next_one for (_, next_one), found in zip(pairs, continued, strict=True) if found is None]
    apart = dict(zip(dict.fromkeys(split), _tokenize_apart(list(dict.fromkeys(split)), tokenizer), strict=True))
    parts = iter(zip(pairs, continued, strict=True))
    return [_join(segments, tokens[segments[0]], parts, apart) for segments in texts]


def _join(
    segments: Sequence[str],
    first: Tokens,
    parts: Iterator[tuple[tuple[str, str], Tokens | None]],
    apart: dict[str, Tokens],
) -> SegmentedText:
    tokens, start, num_split = _within(first, 0, len(segments[0])), len(segments[0]), 0
    for segment in segments[1:]:
        _, continued = next(parts)
        num_split += continued is None
        tokens += _within(apart[segment] if continued is None else continued, start, start + len(segment))
        start += len(segment)
    return SegmentedText(tokens, num_split)


def _within(tokens: Tokens, start: int, end: int) -> Tokens:
    """Tokens with their places in the full text; special tokens that take white space from the next segment do not
    reach into it."""
    return [(token, (min(start + first, end), min(start + last, end))) for token, (first, last) in tokens]


def _continuation(first: Tokens, both: Tokens, length: int) -> Tokens | None:
    """The tokens of a second segment after the first one of `length`; None if together they have other tokens."""
    if [token for token, _ in both[: len(first)]] != [token for token, _ in first]:
        return None
    return [(token, (max(0, start - length), max(0, end - length))) for token, (start, end) in both[len(first) :]]


def _tokenize_apart(segments: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[Tokens]:
    """Tokenize each segment as if it continued a text, whatever that text is."""
    found: dict[int, Tokens] = {}
    for context in CONTEXTS:
        left = [i for i in range(len(segments)) if i not in found]
        if not left:
            break
        first, *joined = _tokenize([context, *(f"{context}{segments[i]}" for i in left)], tokenizer)
        continued = (_continuation(first, both, len(context)) for both in joined)
        found |= {i: tokens for i, tokens in zip(left, continued, strict=True) if tokens is not None}
    alone = [i for i in range(len(segments)) if i not in found]
    found |= dict(zip(alone, _tokenize([segments[i] for i in alone], tokenizer), strict=True))
    return [found[i] for i in range(len(segments))]


def _tokenize(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[Tokens]:
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        list(zip(ids, map(tuple, offsets), strict=True))
        for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def special_tokens_before(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The token ids that a tokenizer writes before a text, such as that of `<s>`."""
    bare, full = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    starts = (start for start in range(len(full)) if full[start : start + len(bare)] == bare)
    return list(full[: next(starts, 0)])

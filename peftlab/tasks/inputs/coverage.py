"""How much of a text a tokenizer knows: how many tokens are its unknown token, which characters are in no other one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

import regex

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TEXTS = 1000
"""More texts are sampled, evenly."""
WARN_SHARE = 0.1
"""From this share of unknown characters on, warnings tell of them."""
MIN_CHARACTERS = 5
"""Fewer unknown characters may be emoji or a name, and do not show another language."""
MULTILINGUAL_BASE = "intfloat/multilingual-e5-small"
_VISIBLE = regex.compile(r"(?V1)[^\s\p{C}\u0300-\u036f]")  # the marks of Latin letters are left out on purpose by many


class Coverage(NamedTuple):
    """Counts of characters, without blanks and control characters, and of tokens that a tokenizer makes of texts."""

    num_characters: int = 0
    num_unknown_characters: int = 0
    num_tokens: int = 0
    num_unknown_tokens: int = 0

    @property
    def unknown_characters(self) -> float:
        """The share of characters in no token, or only in the unknown token, 0 to 1."""
        return self.num_unknown_characters / self.num_characters if self.num_characters else 0.0

    @property
    def unknown_tokens(self) -> float:
        """The share of tokens that are the unknown token, 0 to 1."""
        return self.num_unknown_tokens / self.num_tokens if self.num_tokens else 0.0

    def plus(self, other: Self) -> "Coverage":
        """The counts of both."""
        return Coverage(*(a + b for a, b in zip(self, other, strict=True)))

    def warning(self, where: str) -> str:
        """A sentence about a large share of unknown characters in `where`; empty if the share is small."""
        if self.unknown_characters < WARN_SHARE or self.num_unknown_characters < MIN_CHARACTERS:
            return ""
        return (
            f"{self.unknown_characters:.0%} of the characters in {where} are unknown to this base's tokenizer, so the "
            f"model cannot see them. Choose a base that knows the language: base.model, such as {MULTILINGUAL_BASE}."
        )


def measure_coverage(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> Coverage:
    """The coverage of `texts`, or of a sample if there are many."""
    sample = texts[:: -(-len(texts) // MAX_TEXTS)] if texts else []
    if not sample:
        return Coverage()
    encoded = tokenizer(list(sample), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    total = Coverage()
    for text, ids, offsets in zip(sample, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        unknown = [token == tokenizer.unk_token_id for token in ids]
        total = total.plus(_count(text, unknown, offsets))
    return total


def _count(text: str, unknown: Sequence[bool], offsets: Sequence[tuple[int, int]]) -> Coverage:
    known = bytearray(len(text))
    for (start, end), is_unknown in zip(offsets, unknown, strict=True):
        if not is_unknown:
            known[start:end] = b"\x01" * (end - start)
    visible = [match.start() for match in _VISIBLE.finditer(text)]
    lost = sum(not known[place] for place in visible)
    return Coverage(len(visible), lost, len(unknown), sum(unknown))

"""Text → words: the unit in which entities are tagged and scored.

Runs of letters, digits and marks are words; so is every other visible character, emoji whole. Scripts written without
spaces (Han, kana) give one word a character, so that an entity there can begin and end anywhere.
"""

import regex

_ALONE = r"[\p{Han}\p{Hiragana}\p{Katakana}ーｰ]"
_IN_RUN = rf"[[\p{{L}}\p{{N}}\p{{M}}_]--{_ALONE}]"
_JOINERS = r"[\u00ad\u200c\u200d]"
_WORD = regex.compile(rf"(?V1){_ALONE}\p{{M}}*|{_IN_RUN}(?:{_JOINERS}?{_IN_RUN})*|(?![\s\p{{C}}])\X")


def split_words(text: str) -> list[tuple[int, int]]:
    """(start, end) of each word of `text`, in characters."""
    return [match.span() for match in _WORD.finditer(text)]


def join_tokens(tokens: list[str]) -> tuple[str, list[tuple[int, int]]]:
    """Ready-made tokens → a text with single spaces between them, and (start, end) of each."""
    spans, start = [], 0
    for token in tokens:
        spans.append((start, start + len(token)))
        start += len(token) + 1
    return " ".join(tokens), spans

"""Text → words: the unit in which entities are tagged and scored.

Runs of letters, digits and marks are words; so is every other visible character, emoji whole. Scripts written without
spaces (Han, kana, Thai, Lao, Khmer, Myanmar and others of Unicode's line-breaking class SA) give one word a grapheme
cluster (UAX 29), so that an entity there can begin and end anywhere.
"""

import regex

_ALONE = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Line_Break=SA}\p{Javanese}\p{Balinese}ーｰ]"
_IN_RUN = rf"[[\p{{L}}\p{{N}}\p{{M}}_]--{_ALONE}]"
_JOINERS = r"[\u00ad\u200c\u200d]"
_WORD = regex.compile(rf"(?V1)(?={_ALONE})\X|{_IN_RUN}(?:{_JOINERS}?{_IN_RUN})*|(?![\s\p{{C}}])\X")

_CHARACTER = regex.compile(r"(?![\s\p{C}])\X")
_UNSPACED = regex.compile(_ALONE)


def split_words(text: str) -> list[tuple[int, int]]:
    """(start, end) of each word of `text`, in characters."""
    return [match.span() for match in _WORD.finditer(text)]


def split_characters(text: str) -> list[tuple[int, int]]:
    """(start, end) of each visible character of `text`, marks and joiners with their base."""
    return [match.span() for match in _CHARACTER.finditer(text)]


def are_characters(tokens: list[str]) -> bool:
    """Whether tokens are the characters, or grapheme clusters, of a text in a script without spaces."""
    return all(map(_is_character, tokens)) and any(_UNSPACED.match(token) for token in tokens)


def _is_character(token: str) -> bool:
    return len(token) == 1 or bool(_CHARACTER.fullmatch(token))


def join_tokens(tokens: list[str]) -> tuple[str, list[tuple[int, int]]]:
    """Ready-made tokens → a text, and (start, end) of each: single spaces between words, none between characters."""
    blank = "" if are_characters(tokens) else " "
    spans, start = [], 0
    for token in tokens:
        spans.append((start, start + len(token)))
        start += len(token) + len(blank)
    return blank.join(tokens), spans

"""Character offsets that come with the text they mean: compare them, and convert offsets in other units.

Offsets of many tools count UTF-16 code units (JavaScript, Java), bytes (Rust, Go), characters of a text with other line
endings, or a last character that is included. What an offset says of itself can be checked if the span has its own
text.
"""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, product
from typing import Any, NamedTuple

from peftlab.data.rows import RowError
from peftlab.tasks.inputs.columns import quoted

OWN_TEXT = ("text", "word", "surface", "surface_form", "mention", "quote", "covered_text", "span_text", "entity_text")
"""Keys under which a span holds its own text."""
MAX_SHIFT = 3
"""Characters; larger shifts must be the only one that fits, and move several spans."""


class Offsets(NamedTuple):
    """(start, end) of a span, and its own text if it has one; without `end` it is as long as its own text."""

    start: int
    end: int | None
    text: str | None

    @property
    def place(self) -> tuple[int, int]:
        """(start, end), taken as characters."""
        return self.start, self.start + len(self.text or "") if self.end is None else self.end


Converter = Callable[[Offsets], tuple[int, int] | None]
"""Offsets in another unit → (start, end) in characters; None if they are not those of a character."""


def correct_answers(answers: list[tuple[Any, Any]], context: str) -> tuple[list[tuple[Any, Any]], dict[str, int]]:
    """(text, start) of answers with their starts in characters, and how many were moved, by the rule that did it.

    Unchanged if no rule fits all of them, or if an answer is none; its task says what is wrong.
    """
    if not all(isinstance(text, str) and text.strip() and type(start) is int and start >= 0 for text, start in answers):
        return answers, {}
    try:
        places, rule = correct_offsets([Offsets(start, None, text) for text, start in answers], context, shifts=False)
    except RowError:
        return answers, {}
    moved = [(text, start) for (text, _), (start, _) in zip(answers, places, strict=True)]
    return moved, {f"answers moved to their own text ({rule})": len(moved)} if rule else {}


def own_text(span: Mapping[str, Any]) -> str | None:
    """The text that a span says it holds."""
    return next((value for key in OWN_TEXT if isinstance(value := span.get(key), str) and value.strip()), None)


def correct_offsets(spans: Sequence[Offsets], text: str, *, shifts: bool = True) -> tuple[list[tuple[int, int]], str]:
    """(start, end) of each span in characters of `text`, and how they were corrected; empty if all were right.

    Spans whose own text is not at their offsets are corrected if one rule fits all spans of the row: offsets in another
    unit, or with `shifts` also moved by a number of characters.

    Raises:
        RowError: the own text of a span is not at its offsets, and no rule puts every span in its place.
    """
    if all(_fits(text, span.place, span.text) for span in spans):
        return [span.place for span in spans], ""
    for fits, (name, convert) in product((_is_exact, _fits), _rules(spans, text, shifts=shifts)):
        corrected = [convert(span) for span in spans]
        if all(found and fits(text, found, span.text) for found, span in zip(corrected, spans, strict=True)):
            return [found for found in corrected if found], name
    wrong = next(span for span in spans if not _fits(text, span.place, span.text))
    start, end = wrong.place
    found = f"{quoted(text[start:end])} is there, and no shift fits all spans of the row"
    raise RowError(f"expected {quoted(wrong.text)} at {start}–{end} of the text; {found}")


def _fits(text: str, place: tuple[int, int], own: str | None) -> bool:
    start, end = place
    if not 0 <= start < end <= len(text):
        return own is None and end > len(text)  # its task refuses it
    return own is None or _plain(text[start:end]) == _plain(own)


def _is_exact(text: str, place: tuple[int, int], own: str | None) -> bool:
    start, end = place
    return 0 <= start < end <= len(text) and own in (None, text[start:end])


def _plain(text: str) -> str:
    """Composed characters, and blanks as single spaces: what differs between exports of the same text."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _rules(spans: Sequence[Offsets], text: str, *, shifts: bool) -> Iterator[tuple[str, Converter]]:
    """The rules that may correct the spans, each with its name."""
    yield "UTF-16 code units", _by_width(text, _utf16_units)
    yield "bytes of UTF-8", _by_width(text, _utf8_bytes)
    yield "line ends of two characters", _by_width(text, lambda char: 1 + (char == "\n"))
    yield "line ends of one character", _by_width(text, lambda char: int(char != "\r"))
    yield "UTF-16 code units, line ends of two", _by_width(text, lambda char: _utf16_units(char) + (char == "\n"))
    yield "bytes of UTF-8, line ends of two", _by_width(text, lambda char: _utf8_bytes(char) + (char == "\n"))
    if not shifts:
        return
    yield "the last character included", lambda span: (span.start, span.place[1] + 1)
    for shift in _shifts(spans, text):
        yield f"a shift of {shift:+d}", _by_shift(shift)
        yield f"a shift of {shift:+d}, the length of the text", _by_length(shift)


def _utf16_units(char: str) -> int:
    return 1 + (ord(char) > 0xFFFF)


def _utf8_bytes(char: str) -> int:
    return len(char.encode("utf-8", "surrogatepass"))


def _by_shift(shift: int) -> Converter:
    return lambda span: (span.start + shift, span.place[1] + shift)


def _by_length(shift: int) -> Converter:
    """A shifted start, with the end by the length of the own text."""
    return lambda span: None if span.text is None else (span.start + shift, span.start + shift + len(span.text))


def _by_width(text: str, width: Callable[[str], int]) -> Converter:
    """Offsets count units, of which each character has `width`."""
    ends = list(accumulate(map(width, text), initial=0))

    def convert(span: Offsets) -> tuple[int, int] | None:
        last = span.start + sum(map(width, span.text or "")) if span.end is None else span.end
        start, end = bisect_left(ends, span.start), bisect_left(ends, last)
        exact = end < len(ends) and ends[start] == span.start and ends[end] == last
        return (start, end) if exact and start < end else None

    return convert


def _shifts(spans: Sequence[Offsets], text: str) -> list[int]:
    """The distances from the spans' starts to their own texts, the smallest first.

    A distance counts only if each span's text is at that distance. It must be small, unless it is the only one and
    moves several spans.
    """
    common: set[int] | None = None
    for span in spans:
        if span.text is not None:
            places = {match.start() - span.start for match in re.finditer(f"(?={re.escape(span.text)})", text)}
            common = places if common is None else common & places
    shifts = sorted(common or (), key=lambda shift: (abs(shift), shift))
    several = len({span.text for span in spans if span.text is not None}) > 1
    return shifts if several and len(shifts) == 1 else [shift for shift in shifts if abs(shift) <= MAX_SHIFT][:1]

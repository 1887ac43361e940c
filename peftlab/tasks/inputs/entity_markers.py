"""A text with a head and a tail: read from any of the forms they come in, and written with markers for the model.

The markers are plain text that the base knows already, the *typed entity markers (punctuation)* of Zhou and Chen 2022
(arXiv:2102.01373): `@ * person * Ada @ founded # ^ firm ^ Solwind #`. So no embedding is added or resized, and as they
differ for head and tail, the direction is in the text.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.tasks.inputs.columns import chosen_form, json_cell, quoted, string_list
from peftlab.tasks.inputs.offsets import Offsets, correct_offsets, own_text
from peftlab.tasks.inputs.words import join_tokens, split_words
from peftlab.tasks.labels.tag_schemes import spans_from_tags
from peftlab.tasks.task import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GAP = " … "
ENTITY_POSITIONS = "entity_positions"
"""The input of an entity-start head: the index of the first marker token of head and tail, (batch, 2)."""
FORMS = (("text", "head", "tail"), ("tokens", "head", "tail"), ("tokens", "tags"))
_MARK = re.compile(r"<(?P<close>/?)(?P<name>e1|e2|head|tail)(?::(?P<type>[^<>\s]+))?>")
_ROLES = {"e1": "head", "head": "head", "e2": "tail", "tail": "tail"}
_MARKERS = {"head": ("@", "*"), "tail": ("#", "^")}


@dataclass(frozen=True)
class Span:
    """`text[start:end]`, with the type of the thing where it is known."""

    start: int
    end: int
    type: str | None = None


@dataclass(frozen=True)
class MarkedText(Example):
    """A text with a head and a tail, and the relation from one to the other."""

    head: Span = Span(0, 0)
    tail: Span = Span(0, 0)
    label: str | None = None


def has_marks(text: Any) -> bool:
    """Whether spans are marked inside the text, as in `<e1>Ada</e1>`."""
    return isinstance(text, str) and bool(_MARK.search(text))


def read_spans(row: Row, read_text: Callable[[Row, str], str]) -> MarkedText:
    """A row in any of the forms → its text and spans.

    Raises:
        RowError: columns are missing, or a span is not inside the text, overlaps the other or holds nothing.
    """
    if "text" in row.fields and not any(row.fields.keys() >= set(form) for form in FORMS):
        return _from_marks(read_text(row, "text"), row.where)
    form = chosen_form(row, *FORMS)
    if form[0] == "text":
        text = read_text(row, "text")
        return _from_offsets(text, [json_cell(row.fields[role], role) for role in form[1:]], row.where)
    return _from_tokens(row, form)


def marked_text(example: MarkedText) -> str:
    """The text with its head and tail between plain-text markers, and their types where they are known."""
    return _collapse_spaces(_mark(example)[0]).rstrip(" ")


def marker_offsets(example: MarkedText) -> tuple[int, int]:
    """Where in `marked_text` the first marker of head and tail is, in characters."""
    marked, offsets = _mark(example)
    head, tail = (len(_collapse_spaces(marked[: offsets[role]])) for role in ("head", "tail"))
    return head, tail


def _collapse_spaces(text: str) -> str:
    """Without spaces at the beginning, and with single spaces elsewhere."""
    return re.sub(" {2,}", " ", text).lstrip(" ")


def _mark(example: MarkedText) -> tuple[str, dict[str, int]]:
    """The marked text before its spaces are collapsed, and the offset of the first marker by role."""
    marked, end, offsets = "", 0, {}
    for role, span in sorted((("head", example.head), ("tail", example.tail)), key=lambda item: item[1].start):
        outer, inner = _MARKERS[role]
        kind = f"{inner} {span.type.lower()} {inner} " if span.type else ""
        marked += f"{example.text[end : span.start]} "
        offsets[role] = len(marked)
        marked += f"{outer} {kind}{example.text[span.start : span.end]} {outer} "
        end = span.end
    return marked + example.text[end:], offsets


def keep_nearest(example: MarkedText, tokenizer: "PreTrainedTokenizerBase", budget: int) -> MarkedText:
    """The spans with as many words around each as fit into `budget` tokens; an ellipsis marks each gap."""
    words = split_words(example.text)
    spans = (example.head, example.tail)

    def distance(word: tuple[int, int]) -> int:
        return min(max(span.start - word[1], word[0] - span.end, 0) for span in spans)

    by_distance = sorted(range(len(words)), key=lambda i: distance(words[i]))
    low, high = 0, len(words)  # the most words, nearest first, that still fit
    while low < high:
        middle = (low + high + 1) // 2
        text = marked_text(_keep_words(example, words, sorted(by_distance[:middle])))
        if len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) <= budget:
            low = middle
        else:
            high = middle - 1
    return _keep_words(example, words, sorted(by_distance[:low]))


def _keep_words(example: MarkedText, words: Sequence[tuple[int, int]], chosen: Sequence[int]) -> MarkedText:
    """The example with only the chosen words, and always its spans, left of the text."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(chosen), key=lambda pair: pair[1] - pair[0])]
    chunks = [(words[run[0]][0], words[run[-1]][1]) for run in runs]
    chunks = _merge_spans([*chunks, *((span.start, span.end) for span in (example.head, example.tail))])
    text, moved = "", {}
    for start, end in chunks:
        text += GAP if text else ""
        for role, span in (("head", example.head), ("tail", example.tail)):
            if start <= span.start and span.end <= end:
                shift = len(text) - start
                moved[role] = Span(span.start + shift, span.end + shift, span.type)
        text += example.text[start:end]
    return MarkedText(text, head=moved["head"], tail=moved["tail"])


def _merge_spans(chunks: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(chunks):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _from_marks(text: str, where: str) -> MarkedText:
    """`<e1>…</e1>` and `<e2>…</e2>` (or head and tail, each with a type as in `<e1:PER>`) → spans."""
    plain, end = "", 0
    opened: dict[str, tuple[int, str | None]] = {}
    spans: dict[str, Span] = {}
    for mark in _MARK.finditer(text):
        plain += text[end : mark.start()]
        end, role = mark.end(), _ROLES[mark["name"]]
        if not mark["close"] and role not in opened:
            opened[role] = (len(plain), mark["type"])
        elif mark["close"] and role in opened and role not in spans:
            spans[role] = Span(opened[role][0], len(plain), opened[role][1])
        else:
            raise RowError(f"expected <e1>…</e1> and <e2>…</e2> once each, found another {mark[0]}")
    if spans.keys() != {"head", "tail"}:
        raise RowError(
            "expected the two spans marked in the text, as in '<e1>Ada</e1> founded <e2>Solwind</e2>', or columns head "
            f"and tail ({{start, end}}); found {quoted(text)}"
        )
    plain += text[end:]
    return _checked(_trim_spans(MarkedText(plain, where, head=spans["head"], tail=spans["tail"])))


def _trim_spans(example: MarkedText) -> MarkedText:
    """Spans without the blanks that annotators leave inside the marks."""
    text = example.text
    return replace(example, head=_strip_span(text, example.head), tail=_strip_span(text, example.tail))


def _strip_span(text: str, span: Span) -> Span:
    inside = text[span.start : span.end]
    start = span.start + len(inside) - len(inside.lstrip())
    return Span(start, max(start, span.end - len(inside) + len(inside.rstrip())), span.type)


def _from_offsets(text: str, values: Sequence[Any], where: str) -> MarkedText:
    """Head and tail by characters; offsets in another unit are corrected if both hold their own text."""
    offsets = [Offsets(value["start"], value["end"], own_text(value)) for value in values if _has_offsets(value)]
    if len(offsets) < len(values):
        offsets = []
    places, rule = correct_offsets(offsets, text)
    moved = [{**value, "start": s, "end": e} for value, (s, e) in zip(values, places, strict=True)] if rule else values
    head, tail = (
        _span(value, role, len(text), "characters") for value, role in zip(moved, ("head", "tail"), strict=True)
    )
    warnings = {f"spans moved to their own text ({rule})": len(offsets)} if rule else {}
    return _checked(MarkedText(text, where, 0, warnings, head=head, tail=tail))


def _has_offsets(value: Any) -> bool:
    """Whether a span has a start and an end that may be offsets."""
    match value:
        case {"start": int(start), "end": int(end)} if 0 <= start < end and not isinstance(start, bool):
            return True
    return False


def _from_tokens(row: Row, form: Sequence[str]) -> MarkedText:
    """Tokens, with head and tail as numbers of tokens or by tags."""
    tokens = string_list(row.fields["tokens"], "tokens")
    if not tokens:
        raise RowError("expected tokens to hold some text, found none")
    text, words = join_tokens(tokens)
    if form[1] == "tags":
        spans = _tagged_spans(string_list(row.fields["tags"], "tags"), len(tokens))
    else:
        spans = {role: _span(json_cell(row.fields[role], role), role, len(tokens), "tokens") for role in form[1:]}
    placed = {role: Span(words[span.start][0], words[span.end - 1][1], span.type) for role, span in spans.items()}
    return _checked(MarkedText(text, row.where, head=placed["head"], tail=placed["tail"]))


def _tagged_spans(tags: list[str], tokens: int) -> dict[str, Span]:
    if len(tags) != tokens:
        raise RowError(f"expected as many tags as tokens, found {len(tags)} tags for {tokens} tokens")
    try:
        found = spans_from_tags(tags)
    except ValueError as error:
        raise RowError(str(error)) from None
    spans: dict[str, Span] = {}
    for start, end, name in found:
        role, _, kind = name.partition(":")
        if role.lower() in _ROLES:
            spans.setdefault(_ROLES[role.lower()], Span(start, end, kind or None))
    if spans.keys() != {"head", "tail"} or len(found) != 2:
        raise RowError(
            "expected one head and one tail among the tags (B-head I-head B-tail, with types as in B-head:PER), found "
            f"{', '.join(name for _, _, name in found) or 'none'}"
        )
    return spans


def _span(value: Any, role: str, length: int, unit: str) -> Span:
    match value:
        case {"start": int(start), "end": int(end)} if 0 <= start < end <= length and not isinstance(start, bool):
            kind = value.get("type")
            if kind is None or (isinstance(kind, str) and kind):
                return Span(start, end, kind)
    raise RowError(
        f"expected {role} as {{start, end, type?}} in {unit} with 0 ≤ start < end ≤ {length}, found {quoted(value)}"
    )


def _checked(example: MarkedText) -> MarkedText:
    """Refuse spans that overlap or hold nothing."""
    head, tail = example.head, example.tail
    if head.start < tail.end and tail.start < head.end:
        raise RowError(
            f"expected head and tail apart, but '{example.text[head.start : head.end]}' ({head.start}–{head.end}) "
            f"and '{example.text[tail.start : tail.end]}' ({tail.start}–{tail.end}) overlap"
        )
    for role, span in (("head", head), ("tail", tail)):
        if not example.text[span.start : span.end].strip():
            raise RowError(f"expected {role} to hold some text, found only blanks at {span.start}–{span.end}")
    return example

"""The entities of a row as {start, end, label}, in characters of its text."""

from itertools import pairwise
from typing import Any

from peftlab.data.rows import RowError
from peftlab.tasks.inputs.columns import json_cell, quoted
from peftlab.tasks.inputs.offsets import Offsets, correct_offsets, own_text

CharacterSpan = tuple[int, int, str]
"""Start and end in characters, and the type."""


def read_entities(value: Any, text: str) -> tuple[list[CharacterSpan], dict[str, int]]:
    """Entities in order of their start, and how many were moved to their own text, by the rule that did it.

    Raises:
        RowError: an entity is malformed, not inside the text, not its own text, or overlaps another.
    """
    entities = json_cell(value, "entities")
    if not isinstance(entities, list):
        raise RowError(f"expected entities to be a list of {{start, end, label}}, found {quoted(entities)}")
    offsets = [_offsets(entity, text) for entity in entities]
    places, rule = correct_offsets(offsets, text)
    for entity, (_, end) in zip(entities, places, strict=True):
        if end > len(text):
            raise _malformed(entity, text)
    spans = sorted((*place, entity["label"]) for place, entity in zip(places, entities, strict=True))
    _refuse_overlap(spans, text)
    moved = sum(place != (span.start, span.end) for place, span in zip(places, offsets, strict=True))
    return spans, {f"entities moved to their own text ({rule})": moved} if rule else {}


def _offsets(entity: Any, text: str) -> Offsets:
    match entity:
        case {"start": int(start), "end": int(end), "label": str(label)} if 0 <= start < end and label:
            if not isinstance(start, bool):
                return Offsets(start, end, own_text(entity))
    raise _malformed(entity, text)


def _malformed(entity: Any, text: str) -> RowError:
    return RowError(
        f"expected an entity {{start, end, label}} with 0 ≤ start < end ≤ {len(text)}, found {quoted(entity)}"
    )


def _refuse_overlap(spans: list[CharacterSpan], text: str) -> None:
    for (start, end, _), (next_start, next_end, _) in pairwise(spans):
        if next_start < end:
            raise RowError(
                f"entities '{text[start:end]}' ({start}–{end}) and '{text[next_start:next_end]}' "
                f"({next_start}–{next_end}) overlap; token classification takes flat entities only"
            )

"""Annotations of Prodigy: rows whose `answer` is `reject` or `ignore` are no gold."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from peftlab.data.rows import Split

ANSWERS = ("accept", "reject", "ignore")
REASON = "rows left out whose answer in Prodigy is reject or ignore"
_HASHES = ("_input_hash", "_task_hash")
_ANNOTATIONS = ("spans", "entities", "relations", "label", "labels", "accept", "options", "tokens")


def leave_out_rejected(split: Split) -> Split:
    """The split without rejected and ignored rows, which are counted; unchanged if it is not from Prodigy."""
    if not split.rows or not _is_annotated(split):
        return split
    kept = [row for row in split.rows if row.fields.get("answer", "accept") == "accept"]
    count = len(split.rows) - len(kept)
    return replace(split, rows=kept, left_out={**split.left_out, REASON: count}) if count else split


def _is_annotated(split: Split) -> bool:
    """Whether each `answer` is one of Prodigy's three, beside its hashes or annotations."""
    rows = [row.fields for row in split.rows if "answer" in row.fields]
    return bool(rows) and all(fields["answer"] in ANSWERS and _has_annotation(fields) for fields in rows)


def _has_annotation(fields: Mapping[str, Any]) -> bool:
    return any(name in fields for name in (*_HASHES, *_ANNOTATIONS))

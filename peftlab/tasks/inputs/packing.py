"""Pack several texts into one row of a batch (Krell et al. 2021, arXiv:2107.02027).

Positions start again at 0 with each text. Transformers infers the borders from them and blocks attention across texts.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftlab.imports import torch
from peftlab.tasks.inputs.features import IGNORED, Feature

if TYPE_CHECKING:
    from torch import Tensor


def pack_tokens(features: Sequence[Feature], length: int, padding: int) -> "dict[str, Tensor]":
    """`input_ids`, `position_ids` and `labels`, each (rows, at most `length` tokens).

    The first token of a text, which nothing predicts, has no label. The rest of a row is filled with one more text, of
    the token `padding` without labels.
    """
    rows = [
        torch.cat([_columns(features[i]) for i in row], dim=1) for row in _assign_rows(list(map(len, features)), length)
    ]
    width = max(row.shape[1] for row in rows)
    stacked = torch.stack([torch.cat([row, _padding(width - row.shape[1], padding)], dim=1) for row in rows])
    return dict(zip(("input_ids", "position_ids", "labels"), stacked.unbind(1), strict=True))


def _columns(feature: Feature) -> "Tensor":
    """(3, tokens): token ids, positions, labels."""
    tokens = feature.inputs["input_ids"]
    return torch.tensor([tokens, list(range(len(tokens))), [IGNORED, *feature.labels[1:]]])


def _padding(tokens: int, padding: int) -> "Tensor":
    return torch.tensor([[padding] * tokens, list(range(tokens)), [IGNORED] * tokens], dtype=torch.long)


def _assign_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """First fit decreasing: each text, longest first, goes into the first row that has room for it."""
    rows: list[list[int]] = []
    free: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((row for row, budget in enumerate(free) if budget >= lengths[i]), None)
        if row is None:
            row = len(rows)
            rows.append([])
            free.append(capacity)
        rows[row].append(i)
        free[row] -= lengths[i]
    return rows

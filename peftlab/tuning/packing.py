"""Several texts in one row of a batch, each as if it stood alone (Krell et al. 2021, arXiv:2107.02027).

Positions begin anew with each text. Transformers reads from them where one ends, and lets no token attend to another
text's; what a base or a method makes of that is tried before training.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from peftlab.errors import ErrorCollector
from peftlab.tasks import Feature
from peftlab.tasks.prediction import module_mode
from peftlab.tasks.task import IGNORED
from peftlab.tuning.run import Run

TOLERANCE = 1e-4  # of the loss, in nats


def pack_features(features: Sequence[Feature], length: int, padding: int) -> dict[str, Tensor]:
    """`input_ids`, `position_ids` and `labels`, each (rows, at most `length` tokens).

    The first token of a text, which nothing foresees, has no label. What is left of a row is one more text, of the
    token `padding` without labels.
    """
    rows = [torch.cat([_columns(features[i]) for i in row], dim=1) for row in _filled(list(map(len, features)), length)]
    width = max(row.shape[1] for row in rows)
    whole = torch.stack([torch.cat([row, _padding(width - row.shape[1], padding)], dim=1) for row in rows])
    return dict(zip(("input_ids", "position_ids", "labels"), whole.unbind(1), strict=True))


def _columns(feature: Feature) -> Tensor:
    """(3, tokens): tokens, positions, labels."""
    tokens = feature.inputs["input_ids"]
    return torch.tensor([tokens, list(range(len(tokens))), [IGNORED, *feature.labels[1:]]])


def _padding(tokens: int, padding: int) -> Tensor:
    return torch.tensor([[padding] * tokens, list(range(tokens)), [IGNORED] * tokens], dtype=torch.long)


def _filled(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which texts share a row: each, the longest first, goes into the first row that has room for it."""
    rows: list[list[int]] = []
    left: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((row for row, free in enumerate(left) if free >= lengths[i]), None)
        if place is None:
            place = len(rows)
            rows.append([])
            left.append(room)
        rows[place].append(i)
        left[place] -= lengths[i]
    return rows


def check_packing(run: Run) -> None:
    """Refuse packing where texts in one row do not cost what they cost alone.

    Raises:
        RecipeError: they do not, or the base takes no positions.
    """
    chosen = sorted(run.train_features, key=len)[:3]
    with ErrorCollector() as errors, module_mode(run.model, training=False), torch.inference_mode():
        try:
            together = _loss(run, pack_features(chosen, sum(map(len, chosen)), 0))
        except TypeError:
            errors.add("this base takes no positions, so texts cannot be told apart.", key="training.packing")
            return
        alone = _loss(run, run.task.collate(chosen, run.base.tokenizer))
        if not abs(together - alone) <= TOLERANCE:  # also for NaN
            message = f"three texts in one row have a loss of {together:.4f}, and side by side {alone:.4f}."
            hint = "With this base and method texts see each other: take packing out."
            errors.add(message, key="training.packing", hint=hint)


def _loss(run: Run, batch: dict[str, Tensor]) -> float:
    labels = batch.pop("labels").to(run.model.device)
    output = run.model(**{name: tensor.to(run.model.device) for name, tensor in batch.items()})
    return float(run.task.loss(run.task.logits(output).float(), labels))

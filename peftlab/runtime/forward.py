"""Features of any adapters → logits, in as few forward passes of the one base as can be."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor

from peftlab.runtime.adapter_template import LoadedAdapter
from peftlab.runtime.generation import generate_texts
from peftlab.runtime.routing import Router, apply_head, group_segments, slice_output, to_float32
from peftlab.tasks import Feature
from peftlab.tasks.inputs.encoding import ProgressCallback
from peftlab.tasks.inputs.features import IGNORED
from peftlab.tasks.inputs.inputs import Inputs
from peftlab.tasks.prediction import Outcome, forward, longest_first

Key = TypeVar("Key")
Asked = Sequence[tuple[Key, Feature]]
"""Features, each with the key of its adapter."""
Hold = Callable[[Collection[Any]], AbstractContextManager[Mapping[Any, LoadedAdapter]]]
"""Brings adapters into memory, and keeps them there inside the block."""
BATCH = 32


@torch.inference_mode()
def forward_features(
    asked: Asked[Key],
    hold: Hold,
    router: Router,
    inputs: Inputs,
    *,
    most: int | None = None,
    told: ProgressCallback = lambda done, total: None,
) -> list[Outcome]:
    """The outcome of each feature by its adapter, in order.

    They go in batches of like length, so that little is padded, and of at most `most` adapters.
    """
    outcomes: dict[int, Outcome] = {}
    for batch in _batches(asked, most or BATCH):
        with hold({asked[i][0] for i in batch}) as adapters_by_key:
            for chosen, given in _passes(batch, asked, adapters_by_key, router, inputs):
                outcomes |= zip(chosen, given, strict=True)
        told(len(outcomes), len(asked))
    return [outcomes[i] for i in range(len(asked))]


def _batches(asked: Asked[Key], most: int) -> Iterator[list[int]]:
    """Places in `asked`, the longest first; within a batch those of an adapter together, the most frequent first."""
    batch: list[int] = []
    keys: set[Key] = set()
    for i in longest_first([feature for _, feature in asked]):
        if len(batch) == BATCH or len(keys | {asked[i][0]}) > most:
            yield _together(batch, asked)
            batch, keys = [], set()
        batch.append(i)
        keys.add(asked[i][0])
    if batch:
        yield _together(batch, asked)


def _together(batch: list[int], asked: Asked[Key]) -> list[int]:
    counts = Counter(asked[i][0] for i in batch)
    rank = {key: place for place, (key, _) in enumerate(counts.most_common())}
    return sorted(batch, key=lambda i: rank[asked[i][0]])


def _passes(
    batch: Sequence[int],
    asked: Asked[Key],
    adapters_by_key: Mapping[Key, LoadedAdapter],
    router: Router,
    inputs: Inputs,
) -> Iterator[tuple[Sequence[int], Sequence[Outcome]]]:
    """One pass for all that can be routed, and one for each adapter that cannot; texts that go on apart from them."""
    writing = [i for i in batch if adapters_by_key[asked[i][0]].task.writes and asked[i][1].labels is None]
    if writing:
        yield writing, generate_texts([(adapters_by_key[asked[i][0]], asked[i][1]) for i in writing], router, inputs)
    batch = [i for i in batch if i not in writing]
    shared = [i for i in batch if adapters_by_key[asked[i][0]].routed]
    if shared:
        yield shared, _mixed([(adapters_by_key[asked[i][0]], asked[i][1]) for i in shared], router, inputs)
    for loaded in dict.fromkeys(adapters_by_key[asked[i][0]] for i in batch):
        mine = [i for i in batch if adapters_by_key[asked[i][0]] is loaded]
        if not loaded.routed:
            yield mine, forward(loaded.task, loaded.model, inputs, [asked[i][1] for i in mine])


def _mixed(asked: Sequence[tuple[LoadedAdapter, Feature]], router: Router, inputs: Inputs) -> list[Tensor]:
    """The outcome of each feature, from one forward pass of the base; those of an adapter stand together."""
    features = [feature for _, feature in asked]
    batch = padded(features, inputs, router.device)
    return forward_rows([loaded for loaded, _ in asked], batch, router, features)


def forward_rows(
    rows: Sequence[LoadedAdapter], inputs: Mapping[str, Tensor], router: Router, features: Sequence[Feature] = ()
) -> list[Tensor]:
    """The outcome of each row of a batch by its adapter; those of an adapter stand together, padding is left out.

    `features` are those of the rows, for tasks that look at labels.
    """
    states = router.states([loaded.own for loaded in rows], inputs)
    return [
        outcome
        for loaded, part in group_segments(rows)
        for outcome in _by_head(loaded, states, inputs, part, features[part])
    ]


def padded(features: Sequence[Feature], inputs: Inputs, device: torch.device) -> dict[str, Tensor]:
    """Inputs of the base, (batch, tokens) each."""
    return {name: tensor.to(device) for name, tensor in inputs.pad(features).items()}


def _by_head(
    loaded: LoadedAdapter, states: Any, inputs: Mapping[str, Tensor], part: slice, features: Sequence[Feature]
) -> Iterator[Tensor]:
    task, mine = loaded.task, {name: tensor[part] for name, tensor in inputs.items()}
    own = slice_output(states, part)
    own = to_float32(own) if task.head_labels else own  # the base's own head computes as the base does
    logits = task.logits(apply_head(loaded.model, own, mine)).float()
    scored = not task.head_labels and features and features[0].labels is not None
    labels = _labels(features, mine["attention_mask"]) if scored else None
    outcome = task.outcome(logits, labels).cpu()
    if not task.per_token:
        yield from outcome
        return
    for row, mask in zip(outcome, mine["attention_mask"].cpu(), strict=True):
        yield row[mask.bool()]


def _labels(features: Sequence[Feature], mask: Tensor) -> Tensor:
    """Labels of each token, (batch, tokens), -100 where there is padding."""
    labels = torch.full_like(mask, IGNORED)
    for row, feature in enumerate(features):
        labels[row, mask[row].bool()] = torch.tensor(feature.labels, dtype=mask.dtype, device=mask.device)
    return labels

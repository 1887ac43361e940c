"""Features of any adapters → logits, in as few forward passes of the one base as can be."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from peftlab.runtime.moulds import Resident
from peftlab.runtime.routing import Router, head_output, in_fp32, part_of, runs
from peftlab.tasks import Feature
from peftlab.tasks.predicting import forward
from peftlab.tasks.tokenizing import Told

Key = TypeVar("Key")
Asked = Sequence[tuple[Key, Feature]]
"""Features, each with the key of its adapter."""
Hold = Callable[[Collection[Any]], AbstractContextManager[Mapping[Any, Resident]]]
"""Brings adapters into memory, and keeps them there inside the block."""
BATCH = 32


@torch.inference_mode()
def logits_of(
    asked: Asked[Key],
    hold: Hold,
    router: Router,
    tokenizer: PreTrainedTokenizerBase,
    *,
    most: int | None = None,
    told: Told = lambda done, total: None,
) -> list[Tensor]:
    """The logits of each feature by its adapter, in order.

    They go in batches of like length, so that little is padded, and of at most `most` adapters.
    """
    logits: dict[int, Tensor] = {}
    for batch in _batches(asked, most or BATCH):
        with hold({asked[i][0] for i in batch}) as residents:
            for chosen, given in _passes(batch, asked, residents, router, tokenizer):
                logits |= zip(chosen, given, strict=True)
        told(len(logits), len(asked))
    return [logits[i] for i in range(len(asked))]


def _batches(asked: Asked[Key], most: int) -> Iterator[list[int]]:
    """Places in `asked`, by length; within a batch those of an adapter together, the most frequent first."""
    order = sorted(range(len(asked)), key=lambda i: len(asked[i][1]))
    batch: list[int] = []
    keys: set[Key] = set()
    for i in order:
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
    residents: Mapping[Key, Resident],
    router: Router,
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[tuple[Sequence[int], Sequence[Tensor]]]:
    """One pass for all that can be routed, and one for each adapter that cannot."""
    shared = [i for i in batch if residents[asked[i][0]].routed]
    if shared:
        yield shared, _mixed([(residents[asked[i][0]], asked[i][1]) for i in shared], router, tokenizer)
    for resident in dict.fromkeys(residents[asked[i][0]] for i in batch):
        mine = [i for i in batch if residents[asked[i][0]] is resident]
        if not resident.routed:
            yield mine, forward(resident.task, resident.model, tokenizer, [asked[i][1] for i in mine])


def _mixed(
    asked: Sequence[tuple[Resident, Feature]], router: Router, tokenizer: PreTrainedTokenizerBase
) -> list[Tensor]:
    """The logits of each feature, from one forward pass of the base; those of an adapter stand together."""
    inputs = padded([feature for _, feature in asked], tokenizer, router.device)
    return through([resident for resident, _ in asked], inputs, router)


def through(rows: Sequence[Resident], inputs: Mapping[str, Tensor], router: Router) -> list[Tensor]:
    """The logits of each row of a batch by its adapter; those of an adapter stand together, padding is left out."""
    states = in_fp32(router.states([resident.own for resident in rows], inputs))
    return [logits for resident, part in runs(rows) for logits in _by_head(resident, states, inputs, part)]


def padded(features: Sequence[Feature], tokenizer: PreTrainedTokenizerBase, device: torch.device) -> dict[str, Tensor]:
    """Inputs of the base, (batch, tokens) each."""
    batch = tokenizer.pad([feature.inputs for feature in features], return_tensors="pt")
    return {name: cast(Tensor, tensor).to(device) for name, tensor in batch.items()}


def _by_head(resident: Resident, states: Any, inputs: Mapping[str, Tensor], part: slice) -> Iterator[Tensor]:
    mine = {name: tensor[part] for name, tensor in inputs.items()}
    logits = resident.task.logits(head_output(resident.model, part_of(states, part), mine)).float().cpu()
    if not resident.task.per_token:
        yield from logits
        return
    for row, mask in zip(logits, mine["attention_mask"].cpu(), strict=True):
        yield row[mask.bool()]

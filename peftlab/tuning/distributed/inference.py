"""Prediction in a distributed run: each process computes a share of the rows, and all processes get all outputs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from peftlab.tasks import Feature, Task
from peftlab.tasks.outputs import Continuation
from peftlab.tasks.prediction import FeatureOutput, ForwardFunction, longest_first, text_generation
from peftlab.tuning.distributed.process_group import ProcessGroup


def split_across_ranks(
    forward: ForwardFunction, task: Task, process_group: ProcessGroup, *, sharded: bool
) -> ForwardFunction:
    """Distribute `forward`: each process runs some of the features, and all processes get all outputs.

    With a sharded base every process runs all features, at the same time as the others.
    """
    if process_group.world_size == 1 or sharded:
        return forward

    def split_forward(features: Sequence[Feature]) -> Sequence[FeatureOutput]:
        indices = longest_first(features)[process_group.rank :: process_group.world_size]
        outputs: dict[int, Any] = dict(zip(indices, forward([features[i] for i in indices]), strict=True))
        if text_generation(task, features):
            return _gather_texts(outputs, process_group)
        return _gather_logits(outputs, task, features, process_group)

    return split_forward


def _gather_texts(local: Mapping[int, Continuation], process_group: ProcessGroup) -> list[Continuation]:
    """The texts of all processes, in order."""
    shares = process_group.all_gather(json.dumps({i: asdict(text) for i, text in local.items()}))
    texts = {int(i): Continuation(**text) for share in shares for i, text in json.loads(share).items()}
    return [texts[i] for i in sorted(texts)]


def _gather_logits(
    local: Mapping[int, torch.Tensor], task: Task, features: Sequence[Feature], process_group: ProcessGroup
) -> list[torch.Tensor]:
    """The logits of all processes, in order: each has zeros for rows of other processes, and they are summed."""
    logits = [task.head.empty_output(feature) for feature in features]
    for i, output in local.items():
        logits[i] = output.float()
    flat = torch.cat([part.flatten() for part in logits])
    process_group.all_reduce(flat)
    parts = flat.split([part.numel() for part in logits])
    return [part.view(original.shape) for part, original in zip(parts, logits, strict=True)]

"""The states of the frozen base that a linear probe is fitted on: the inputs of the head's output layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peftlab.base import Base
from peftlab.tasks import Feature, Task
from peftlab.tasks.inputs.features import IGNORED
from peftlab.tuning.head_inputs import head_inputs


@dataclass(frozen=True)
class FrozenStates:
    """States of training features, with their targets.

    Attributes:
        states: (n, width), of each feature, or of each token with a label, on the CPU in fp32.
        targets: (n,) or (n, labels).
        rows: (n,), the number of the training row that each state is from.
    """

    states: Tensor
    targets: Tensor
    rows: Tensor

    def select(self, rows: Sequence[int], *, invert: bool = False) -> "FrozenStates":
        """The states of the rows with these numbers, or of all others."""
        kept = torch.isin(self.rows, torch.tensor(list(rows), dtype=torch.long), invert=invert)
        return FrozenStates(self.states[kept], self.targets[kept], self.rows[kept])

    def __len__(self) -> int:
        return len(self.states)


def compute_frozen_states(base: Base, task: Task, features: Mapping[int, Feature]) -> FrozenStates:
    """Run the labelled feature of each row through the base, and keep the inputs of the head's output layer."""
    parts = []
    for row, states in zip(features, head_inputs(base.model, base, task, list(features.values())), strict=True):
        targets = torch.tensor(features[row].labels)
        if task.head.is_token_level:
            is_target = targets != IGNORED
            states, targets = states[is_target], targets[is_target]
        else:
            states, targets = states[None], targets[None]
        parts.append((states, targets, torch.full((len(states),), row)))
    return FrozenStates(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

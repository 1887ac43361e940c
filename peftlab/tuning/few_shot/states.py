"""The states that the head reads, of training rows and labels' texts, by the model as it is now."""

from collections.abc import Sequence

import torch

from peftlab.tasks import Feature
from peftlab.tuning.baselines.states import FrozenStates
from peftlab.tuning.head_inputs import head_inputs
from peftlab.tuning.run import Run

LABEL_TEXT = -1  # the row number of a label's text


def row_states(run: Run) -> FrozenStates:
    """The states of all training rows."""
    return _states(run, run.train_features, range(len(run.train_features)))


def label_text_states(run: Run, features: Sequence[Feature]) -> FrozenStates:
    """The states of the labels' texts."""
    return _states(run, features, [LABEL_TEXT] * len(features))


def _states(run: Run, features: Sequence[Feature], rows: Sequence[int]) -> FrozenStates:
    states = torch.stack(head_inputs(run.model, run.base, run.task, features))
    return FrozenStates(states, torch.tensor([feature.labels for feature in features]), torch.tensor(rows))

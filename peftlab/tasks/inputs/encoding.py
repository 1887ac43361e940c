"""Examples → features, so many at a time that the tokenizer works on every core."""

from collections.abc import Callable, Sequence
from typing import Any

from peftlab.tasks.inputs.features import Feature
from peftlab.tasks.inputs.inputs import Inputs
from peftlab.tasks.task import Task

ProgressCallback = Callable[[int, int], None]
"""Called after each batch with the number of encoded examples and the total."""
AT_A_TIME = 512  # bounds the memory for the outputs of the tokenizer


def encode_examples(
    task: Task,
    inputs: Inputs,
    examples: Sequence[Any],
    *,
    max_length: int,
    training: bool,
    on_progress: ProgressCallback = lambda done, total: None,
) -> list[list[Feature]]:
    """The features of each example, in order; see `Task.encode`."""
    features: list[list[Feature]] = []
    for start in range(0, len(examples), AT_A_TIME):
        chosen = examples[start : start + AT_A_TIME]
        features += task.encode(chosen, inputs, max_length, training=training)
        on_progress(len(features), len(examples))
    return features

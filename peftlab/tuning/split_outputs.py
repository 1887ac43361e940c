"""The outputs of a model for the rows of a split: validation, test, or the held-out rows of a cross-validation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from peftlab.tasks import Feature
from peftlab.tasks.prediction import FeatureOutput


@dataclass(frozen=True)
class SplitOutputs:
    """The examples of a split, their features, and the outputs of the features of each example."""

    examples: Sequence[Any]
    features: Sequence[Sequence[Feature]]
    outputs: Sequence[Sequence[FeatureOutput]]


def save_outputs(outputs: Sequence[Sequence[Tensor]], file: Path) -> None:
    """Write the output of each feature of each row to a safetensors file."""
    named = {f"{row} {i}": tensor for row, tensors in enumerate(outputs) for i, tensor in enumerate(tensors)}
    save_file({name: tensor.contiguous() for name, tensor in named.items()}, file)


def load_outputs(file: Path, num_rows: int) -> list[list[Tensor]]:
    """The inverse of `save_outputs`."""
    outputs: list[list[Tensor]] = [[] for _ in range(num_rows)]
    tensors = {tuple(map(int, name.split())): tensor for name, tensor in load_file(file).items()}
    for row, i in sorted(tensors):
        outputs[row].append(tensors[row, i])
    return outputs

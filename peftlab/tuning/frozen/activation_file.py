"""Activations of the frozen layers in a memory-mapped file, looked up by a hash of the model inputs."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from peftlab.tasks.inputs.entity_markers import ENTITY_POSITIONS

Key = bytes
MASK_NAME = "attention_mask"
IGNORED_NAMES = ("labels", MASK_NAME, ENTITY_POSITIONS)  # not inputs of the layers


@dataclass(frozen=True)
class Inputs:
    """One batch of model inputs: a key for each row, independent of padding, and `mask`, (batch, tokens)."""

    keys: list[Key]
    mask: torch.Tensor


def hash_inputs(arguments: Mapping[str, Any], precision: str) -> Inputs | None:
    """The batch in a model's keyword arguments; None if an input does not have one value per token.

    `precision` is part of the key, because the same inputs give other activations in another precision.
    """
    tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    mask = tensors.get(MASK_NAME)
    columns = {name: tensor for name, tensor in sorted(tensors.items()) if name not in IGNORED_NAMES}
    if mask is None or not columns or any(tensor.shape != mask.shape for tensor in columns.values()):
        return None
    real_tokens = mask.bool().cpu().numpy()
    values = [(name.encode(), tensor.cpu().numpy()) for name, tensor in columns.items()]
    keys = []
    for i, tokens in enumerate(real_tokens):
        digest = hashlib.blake2b(precision.encode(), digest_size=16)
        for name, column in values:
            digest.update(name)
            digest.update(column[i][tokens].tobytes())
        keys.append(digest.digest())
    return Inputs(keys, mask.bool())


class Writer:
    """Appends the activations of rows to a file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.spans: dict[Key, tuple[int, int]] = {}
        self.tokens = self.width = 0
        self.dtype = torch.float32

    def write(self, inputs: Inputs, states: torch.Tensor) -> None:
        """Append the activations `states`, (batch, tokens, hidden), of each new row, without padding.

        Raises:
            OSError: the file cannot grow.
        """
        self.width, self.dtype = states.shape[-1], states.dtype
        for key, row, mask in zip(inputs.keys, states.cpu(), inputs.mask.cpu(), strict=True):
            if key not in self.spans:
                values = row[mask].contiguous()
                self.file.write(values.view(torch.uint8).numpy().data)
                self.spans[key] = (self.tokens, self.tokens + len(values))
                self.tokens += len(values)


class Activations:
    """The file of a `Writer`, mapped into memory and read on access."""

    def __init__(self, path: Path, writer: Writer) -> None:
        self.spans = writer.spans
        size = writer.tokens * writer.width
        states = torch.from_file(str(path), shared=False, size=size, dtype=writer.dtype)
        self.states = states.view(writer.tokens, writer.width)

    def read(self, inputs: Inputs) -> torch.Tensor | None:
        """(batch, tokens, hidden), zero at padding; None if a row is unknown."""
        if any(key not in self.spans for key in inputs.keys):
            return None
        padded = self.states.new_zeros(*inputs.mask.shape, self.states.shape[-1])
        padded[inputs.mask.cpu()] = torch.cat([self.states[slice(*self.spans[key])] for key in inputs.keys])
        return padded.to(inputs.mask.device)


def first_match(files: Sequence[Activations], inputs: Inputs) -> torch.Tensor | None:
    """The activations from the first of `files` that contains every row; None if none does."""
    candidates = (file.read(inputs) for file in files)
    return next((states for states in candidates if states is not None), None)

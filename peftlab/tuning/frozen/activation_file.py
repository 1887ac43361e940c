"""Activations of the frozen layers, kept in a memory-mapped file and found again by the inputs that made them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

Key = bytes
SELECTS = "attention_mask"
UNSEEN = ("labels", SELECTS)  # what no layer computes from


@dataclass(frozen=True)
class Inputs:
    """One batch as the model gets it: a key for each row, whatever it is padded to, and `mask`, (batch, tokens)."""

    keys: list[Key]
    mask: torch.Tensor


def inputs_of(arguments: Mapping[str, Any], manner: str) -> Inputs | None:
    """The batch in a model's keyword arguments; None where something in them is not one value a token.

    `manner` tells apart what the same inputs give in another precision.
    """
    tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    mask = tensors.get(SELECTS)
    columns = {name: tensor for name, tensor in sorted(tensors.items()) if name not in UNSEEN}
    if mask is None or not columns or any(tensor.shape != mask.shape for tensor in columns.values()):
        return None
    here = mask.bool().cpu().numpy()
    values = [(name.encode(), tensor.cpu().numpy()) for name, tensor in columns.items()]
    keys = []
    for i, chosen in enumerate(here):
        digest = hashlib.blake2b(manner.encode(), digest_size=16)
        for name, column in values:
            digest.update(name)
            digest.update(column[i][chosen].tobytes())
        keys.append(digest.digest())
    return Inputs(keys, mask.bool())


class Writer:
    """Appends the activations of one row after the other to a file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.spans: dict[Key, tuple[int, int]] = {}
        self.tokens = self.width = 0
        self.dtype = torch.float32

    def write(self, inputs: Inputs, states: torch.Tensor) -> None:
        """Keep what `states`, (batch, tokens, hidden), holds of each row that is new, without its padding.

        Raises:
            OSError: the file cannot grow.
        """
        self.width, self.dtype = states.shape[-1], states.dtype
        for key, row, mask in zip(inputs.keys, states.cpu(), inputs.mask.cpu(), strict=True):
            if key not in self.spans:
                kept = row[mask].contiguous()
                self.file.write(kept.view(torch.uint8).numpy().data)
                self.spans[key] = (self.tokens, self.tokens + len(kept))
                self.tokens += len(kept)


class Activations:
    """What a `Writer` has written, mapped into memory: read from the disk, or its cache, as it is asked for."""

    def __init__(self, path: Path, written: Writer) -> None:
        self.spans = written.spans
        size = written.tokens * written.width
        states = torch.from_file(str(path), shared=False, size=size, dtype=written.dtype)
        self.states = states.view(written.tokens, written.width)

    def read(self, inputs: Inputs) -> torch.Tensor | None:
        """(batch, tokens, hidden), zero where the batch is padded; None if a row is not known."""
        if any(key not in self.spans for key in inputs.keys):
            return None
        padded = self.states.new_zeros(*inputs.mask.shape, self.states.shape[-1])
        padded[inputs.mask.cpu()] = torch.cat([self.states[slice(*self.spans[key])] for key in inputs.keys])
        return padded.to(inputs.mask.device)


def first_match(tables: Sequence[Activations], inputs: Inputs) -> torch.Tensor | None:
    """From the first of `tables` that knows every row."""
    found = (table.read(inputs) for table in tables)
    return next((states for states in found if states is not None), None)

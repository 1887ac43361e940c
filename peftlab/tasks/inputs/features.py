"""Features: what a model sees of an example."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

IGNORED = -100  # the index that torch's cross entropy ignores


@dataclass(frozen=True)
class Feature:
    """An example, or one window of it, as model inputs.

    `inputs` maps the model's argument names to values, of text one value per token. `labels` are the targets of the
    loss: one class per token (-100 for none), or one value or list for the sequence; None for prediction. `positions`
    pairs (token, unit of the example) for each token at which something is predicted. `truncated` is true if a part of
    the example was left out. `warnings` are changes that the ledger counts, such as characters that the tokenizer does
    not know.
    """

    inputs: dict[str, Any]
    labels: Any
    positions: Sequence[tuple[int, int]] = ()
    truncated: bool = False
    warnings: Sequence[str] = ()

    def __len__(self) -> int:
        """The length of the first input, by which batches are formed."""
        return len(next(iter(self.inputs.values())))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON. An input that is constant, such as an attention mask, is stored as one number."""
        first, *others = self.inputs
        inputs = {first: self.inputs[first], **{name: _compressed(self.inputs[name]) for name in others}}
        return {**vars(self), "inputs": inputs}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of `as_dict`."""
        length = len(next(iter(plain["inputs"].values())))
        inputs = {
            name: [values] * length if isinstance(values, int) else values for name, values in plain["inputs"].items()
        }
        positions, warnings = tuple(map(tuple, plain["positions"])), tuple(plain.get("warnings", ()))
        return cls(**{**plain, "inputs": inputs, "positions": positions, "warnings": warnings})


def _compressed(values: Any) -> Any:
    return values[0] if isinstance(values[0], int) and len(set(values)) == 1 else values

"""What one tuning run works with."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel

from peftlab.base import Base
from peftlab.data import Ledger, Rows
from peftlab.recipe import Recipe, recipe_yaml
from peftlab.tasks import Feature, Task


@dataclass(frozen=True)
class Run:
    """A recipe with all it asked for in memory: `examples` and `ledgers` by split, `features` of the training split.

    `max_length` is the longest input in tokens, `trained` the number of parameters that train.
    """

    recipe: Recipe
    rows: Rows
    task: Task
    examples: dict[str, list[Any]]
    ledgers: dict[str, Ledger]
    base: Base
    max_length: int
    features: list[Feature]
    model: PeftModel
    trained: int

    @property
    def identity(self) -> dict[str, str]:
        """What must be the same for a checkpoint to be worth going on from."""
        return {
            "recipe": recipe_yaml(self.recipe, "/"),
            "data": self.rows.content_hash,
            "base": self.base.fingerprint,
        }

    def precision(self) -> torch.autocast:
        """The block to compute training steps in; predictions are made outside of it."""
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.recipe.training.bf16)

    @property
    def checkpoint_bytes(self) -> int:
        """Disk space the run may need: weights and two Adam moments in fp32, for three checkpoints and the adapter."""
        return self.trained * 4 * 3 * 4 + 10_000_000

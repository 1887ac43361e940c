"""What one tuning run works with."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel

from peftlab.base import Base
from peftlab.data import Ledger, Rows
from peftlab.recipe import Recipe, recipe_yaml
from peftlab.tasks import Feature, Task
from peftlab.tuning.distributed import Processes


@dataclass(frozen=True)
class Run:
    """A recipe with all it asked for in memory: `examples` and `ledgers` by split, `features` of the training split.

    `max_length` is the longest input in tokens, `trained` the number of parameters that train; `processes` are those
    that share the run, on a `device` each, and with `sharded` each of them holds a part of the base.
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
    processes: Processes
    device: torch.device
    sharded: bool

    @property
    def identity(self) -> dict[str, str]:
        """What must be the same for a checkpoint to be worth going on from."""
        return {
            "recipe": recipe_yaml(self.recipe, "/"),
            "data": self.rows.content_hash,
            "base": self.base.fingerprint,
            "number of processes": str(self.processes.count),
        }

    @property
    def checkpoint_bytes(self) -> int:
        """Disk space the run may need: weights and two Adam moments in fp32, for three checkpoints and the adapter."""
        return self.trained * 4 * 3 * 4 + 10_000_000

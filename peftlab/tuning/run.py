"""What one tuning run works with."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from peft import PeftModel

from peftlab.base import Base
from peftlab.data import Ledger, Rows
from peftlab.methods import saved_bytes
from peftlab.recipe import Recipe, recipe_yaml
from peftlab.tasks import Feature, Task
from peftlab.tuning.distributed.process_group import Processes
from peftlab.tuning.precision import training_dtype
from peftlab.tuning.warm_start import Start


@dataclass(frozen=True)
class Run:
    """A recipe with all it asked for in memory: `examples`, `encoded` and `ledgers` by split.

    `encoded` holds the features of each example: of the training split cut at `max_length` tokens, of the others in
    windows. `max_length` is the longest input in tokens, `trained` the number of parameters that train; `processes` are
    those that share the run, on a `device` each, and with `sharded` each of them holds a part of the base. `start`
    tells which adapter's weights it began with, if any.
    """

    recipe: Recipe
    rows: Rows
    task: Task
    examples: dict[str, list[Any]]
    ledgers: dict[str, Ledger]
    base: Base
    max_length: int
    encoded: dict[str, list[list[Feature]]]
    model: PeftModel
    trained: int
    processes: Processes
    device: torch.device
    sharded: bool
    start: Start | None = None

    @cached_property
    def features(self) -> list[Feature]:
        """Every feature of the training split."""
        return [feature for features in self.encoded["train"] for feature in features]

    @property
    def identity(self) -> dict[str, str]:
        """What must be the same for a checkpoint to be worth going on from."""
        return {
            "recipe": recipe_yaml(self.recipe, "/"),
            "data": self.rows.content_hash,
            "base": self.base.fingerprint,
            "chat template": str(self.task.state.get("chat_template")),  # a file may have changed
            "number of processes": str(self.processes.count),
            "adapter that it starts from": json.dumps(self.start.info().to_dict()) if self.start else "none",
        }

    def inputs_of(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """A batch without its labels, where the model is."""
        batch = self.task.collate(features, self.base.tokenizer)
        return {name: tensor.to(self.model.device) for name, tensor in batch.items() if name != "labels"}

    @cached_property
    def dtype(self) -> torch.dtype:
        """What training computes in; see `training_dtype`."""
        kind = self.model.config.model_type
        return training_dtype(self.recipe.training, self.device, self.base.quantization, model_type=kind)

    def precision(self) -> torch.autocast:
        """The block to run the model in while it trains; afterwards it predicts in fp32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @property
    def checkpoint_bytes(self) -> int:
        """Disk space the run may need: three checkpoints, with two Adam moments in fp32, and the adapter."""
        return 4 * (saved_bytes(self.model) + 2 * 4 * self.trained) + 10_000_000

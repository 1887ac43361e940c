"""The state of one tuning run, ready to train."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn

from peftlab.base import Base
from peftlab.methods import saved_bytes
from peftlab.recipe import Recipe, recipe_yaml
from peftlab.tasks import Feature, Task
from peftlab.tuning.baselines.measure import NO_BASELINES, Baselines
from peftlab.tuning.dataset import EncodedDataset
from peftlab.tuning.distributed.process_group import ProcessGroup
from peftlab.tuning.precision import training_dtype
from peftlab.tuning.split_outputs import SplitOutputs
from peftlab.tuning.warm_start import WarmStart

FEW_VALIDATION_ROWS = 30
MAX_ROWS_FOR_PROBE = 50
"""With fewer training rows, `head_init: auto` starts the head from the linear probe."""


@dataclass(frozen=True)
class Run:
    """A recipe with everything it needs loaded into memory.

    Attributes:
        recipe: What to train.
        dataset: The encoded rows of all splits, and the task.
        base: The frozen base.
        model: The base with its adapter.
        num_trainable: Number of trainable parameters.
        process_group: The processes that share the run.
        device: Where this process computes.
        sharded: Whether each process holds only a part of the base.
        start: The adapter whose weights the run started with, if any.
        reference_state: The trainable parameters at the start, by name, if `start` is the reference of preference
            tuning; else empty, and the reference is the base.
        baselines: The linear probe, and the scores of baselines.
        is_fold: Whether this trains one fold of a cross-validation, which needs neither checkpoints nor scores.
        cross_validation: Outputs for held-out training rows, if the run has no validation split.
        folder: For checkpoints, while the run trains.
        log: Trainer's log, after training.
    """

    recipe: Recipe
    dataset: EncodedDataset
    base: Base
    model: PeftModel
    num_trainable: int
    process_group: ProcessGroup
    device: torch.device
    sharded: bool
    start: WarmStart | None = None
    reference_state: Mapping[str, torch.Tensor] = field(default_factory=dict)
    baselines: Baselines = NO_BASELINES
    is_fold: bool = False
    cross_validation: SplitOutputs | None = None
    folder: Path | None = None
    log: Sequence[dict[str, float]] = field(default_factory=list)

    @property
    def task(self) -> Task:
        """The task of the dataset."""
        return self.dataset.task

    @property
    def has_validation(self) -> bool:
        """Whether epochs are scored on a validation split, and the best one is kept."""
        return "validation" in self.dataset.examples

    @property
    def keeps_latest_tie(self) -> bool:
        """Whether the last of several epochs with equal validation scores is published, not the first.

        A few rows give equal scores to epochs that are not equally good; the last one has trained for longest.
        """
        return len(self.dataset.examples.get("validation", ())) < FEW_VALIDATION_ROWS

    @property
    def starts_from_probe(self) -> bool:
        """Whether the head starts with the weights of the linear probe."""
        head_init = self.recipe.training.head_init
        is_helpful = self.num_training_rows < MAX_ROWS_FOR_PROBE and not self.task.head.is_token_level
        wanted = head_init == "probe" or (head_init == "auto" and is_helpful)
        return wanted and self.baselines.probe is not None and self.start is None

    def output_layer(self, name: str) -> nn.Linear:
        """The trained copy of the head's layer `name`: PEFT keeps the original beside it."""
        (layer,) = (
            module
            for path, module in self.model.get_base_model().named_modules()
            if isinstance(module, nn.Linear)
            and path.replace(".modules_to_save.default", "") == name
            and ".original_module" not in f".{path}"
        )
        return layer

    @property
    def num_training_rows(self) -> int:
        """Number of training rows that are not dropped."""
        return sum(bool(features) for features in self.dataset.features["train"])

    @cached_property
    def train_features(self) -> list[Feature]:
        """All features of the training split."""
        return [feature for features in self.dataset.features["train"] for feature in features]

    @property
    def identity(self) -> dict[str, str]:
        """The properties that must be unchanged to resume from a checkpoint: name → value."""
        return {
            "recipe": recipe_yaml(self.recipe, "/"),
            "data": self.dataset.rows.content_hash,
            "base": self.base.fingerprint,
            "chat template": str(self.task.state.get("chat_template")),  # its file may have changed
            "number of processes": str(self.process_group.world_size),
            "adapter that it starts from": json.dumps(self.start.info().to_dict()) if self.start else "none",
        }

    def model_inputs(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """A batch of `features` without labels, on the model's device."""
        batch = self.task.head.collate(features, self.base.inputs)
        return {name: tensor.to(self.model.device) for name, tensor in batch.items() if name != "labels"}

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of training; see `training_dtype`."""
        model_type = self.model.config.model_type
        return training_dtype(self.recipe.training, self.device, self.base.quantization, model_type=model_type)

    def autocast(self) -> torch.autocast:
        """The context in which the model trains; after training it predicts in fp32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @property
    def checkpoint_bytes(self) -> int:
        """Disk space that the run may need: three checkpoints with two Adam moments in fp32, and the adapter."""
        return 4 * (saved_bytes(self.model) + 2 * 4 * self.num_trainable) + 10_000_000

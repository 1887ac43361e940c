"""TRL's DPOTrainer with our features and the settings of the recipe.

TRL only computes the loss. Its other features are turned off: it would tokenize and truncate again, copy the adapter as
a reference, disable dropout, round adapters of quantized bases to bfloat16, write a model card, and send telemetry.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import TrainingArguments
from trl import DPOConfig, DPOTrainer

from peftlab.tasks.inputs.features import IGNORED
from peftlab.tasks.preference import Answer, PreferenceTask
from peftlab.tuning.preference.reference import attach_references
from peftlab.tuning.run import Run
from peftlab.tuning.trainer import TaskTrainer, training_arguments


@dataclass(frozen=True)
class AnswerPair:
    """The chosen and the rejected answer of a training row; its length is the sum of both, in tokens."""

    chosen: Answer
    rejected: Answer

    def __len__(self) -> int:
        return len(self.chosen) + len(self.rejected)


class PreferenceTrainer(TaskTrainer, DPOTrainer):
    """A TaskTrainer with the loss of TRL."""

    def __init__(self, run: Run, *args: Any, **kwargs: Any) -> None:
        self._pairs = _pairs(run.dataset.features["train"])
        with _keep_fp32(run.model):
            super().__init__(
                run,
                *args,
                processing_class=run.base.inputs.processor,
                ref_model=_NoReference(run.base.model.config),
                **kwargs,
            )

    @staticmethod
    def arguments(run: Run, folder: Path) -> TrainingArguments:
        """See `TaskTrainer.arguments`."""
        task = cast(PreferenceTask, run.task)
        return training_arguments(
            run,
            folder,
            len(_pairs(run.dataset.features["train"])),
            DPOConfig,
            beta=task.beta,
            loss_type=[task.loss_type],
            label_smoothing=task.label_smoothing,
            precompute_ref_log_probs=True,  # the rows contain them
            max_length=None,
            disable_dropout=False,
            router_aux_loss_coef=0.0,
            bf16=False,  # `Run.autocast` sets the precision
            gradient_checkpointing=None,  # the context `gradient_checkpointing` does it; False would warn
        )

    def rows(self) -> Sequence[AnswerPair]:
        """See `TaskTrainer.rows`."""
        return self._pairs

    def dataset(self) -> Any:
        """Pair indices as a `datasets.Dataset`, the only type that TRL accepts."""
        return Dataset.from_dict({"pair": list(range(len(self._pairs)))})

    def loss_terms(self, row: Any) -> int:
        """1: a pair is one term."""
        return 1

    def collator(self) -> Callable[[Sequence[Mapping[str, int]]], dict[str, torch.Tensor]]:
        """See `_collate`."""
        return lambda rows: _collate([self._pairs[row["pair"]] for row in rows], self.run)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of pairs with reference log-probabilities, which are computed here in the precision of training."""
        with self.run.autocast():
            self._pairs = _pairs(attach_references(self.run, self.run.dataset.features["train"]))
        return super().get_train_dataloader()

    def mean_loss(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        """TRL's loss of a batch."""
        with self.run.autocast():
            return DPOTrainer.compute_loss(self, model, inputs), None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log TRL's training metrics only with the training loss; see `Trainer.log`."""
        log = super().log if "loss" in logs else super(DPOTrainer, self).log
        log(logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: the published adapter has its own."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def _send_telemetry(self) -> None:
        """Send nothing."""


class _NoReference(torch.nn.Module):
    """A reference model that is never called; without one, TRL would copy the adapter."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config


@contextmanager
def _keep_fp32(model: PeftModel) -> Iterator[None]:
    """Keep trainable parameters in fp32: TRL casts them to bfloat16 on quantized bases."""
    before = [(parameter, parameter.data) for parameter in model.parameters() if parameter.requires_grad]
    yield
    for parameter, data in before:
        parameter.data = data.to(parameter.device)


def _pairs(encoded: Sequence[Sequence[Any]]) -> list[AnswerPair]:
    return [AnswerPair(*answers) for answers in encoded if answers]


def _collate(pairs: Sequence[AnswerPair], run: Run) -> dict[str, torch.Tensor]:
    """A batch for TRL: (2 · pairs, tokens), first chosen, then rejected answers; reference logps of (pairs,)."""
    sides = [pair.chosen for pair in pairs], [pair.rejected for pair in pairs]
    batch = run.task.head.collate([*sides[0], *sides[1]], run.base.inputs)
    in_loss = batch.pop("labels") != IGNORED
    chosen, rejected = (torch.tensor([-cast(float, answer.reference) for answer in side]) for side in sides)
    return {**batch, "completion_mask": in_loss.long(), "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

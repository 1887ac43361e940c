"""TRL's DPOTrainer, fed with our features and told by the recipe; all else is as for other tasks.

TRL computes the loss. What it would do besides is left out: it would tokenize anew and cut, copy the adapter for a
reference, leave dropout out, round the adapters of quantized bases to bfloat16, write a model card, and send telemetry.
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
    """Both answers of a training row; as long as they are together, in tokens."""

    chosen: Answer
    rejected: Answer

    def __len__(self) -> int:
        return len(self.chosen) + len(self.rejected)


class PreferenceTrainer(TaskTrainer, DPOTrainer):
    """A TaskTrainer whose loss is TRL's."""

    def __init__(self, run: Run, *args: Any, **kwargs: Any) -> None:
        self._pairs = _pairs(run.dataset.features["train"])
        with _weights_kept(run.model):
            super().__init__(
                run,
                *args,
                processing_class=run.base.inputs.processor,
                ref_model=_Elsewhere(run.base.model.config),
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
            precompute_ref_log_probs=True,  # the base's are in the rows
            max_length=None,
            disable_dropout=False,
            router_aux_loss_coef=0.0,
            bf16=False,  # `Run.precision` does
            gradient_checkpointing=None,  # `gradient_checkpointing` does; False would warn of its new name
        )

    def rows(self) -> Sequence[AnswerPair]:
        """See `TaskTrainer.rows`."""
        return self._pairs

    def dataset(self) -> Any:
        """Their numbers: TRL takes a `datasets.Dataset` alone."""
        return Dataset.from_dict({"pair": list(range(len(self._pairs)))})

    def loss_terms(self, row: Any) -> int:
        """A pair is one."""
        return 1

    def collator(self) -> Callable[[Sequence[Mapping[str, int]]], dict[str, torch.Tensor]]:
        """See `_collate`."""
        return lambda numbers: _collate([self._pairs[one["pair"]] for one in numbers], self.run)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Of pairs that know what the base makes of them; it is computed now, as the steps will compute."""
        with self.run.autocast():
            self._pairs = _pairs(attach_references(self.run, self.run.dataset.features["train"]))
        return super().get_train_dataloader()

    def mean_loss(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        """TRL's."""
        with self.run.autocast():
            return DPOTrainer.compute_loss(self, model, inputs), None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With TRL's means over training rows where it is these that are logged; see `Trainer.log`."""
        log = super().log if "loss" in logs else super(DPOTrainer, self).log
        log(logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: the published adapter has its own."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def _send_telemetry(self) -> None:
        """None."""


class _Elsewhere(torch.nn.Module):
    """Stands where TRL wants a reference, or it would copy the adapter for one. It is never asked."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config


@contextmanager
def _weights_kept(model: PeftModel) -> Iterator[None]:
    """What trains stays in fp32; TRL rounds it on quantized bases."""
    before = [(parameter, parameter.data) for parameter in model.parameters() if parameter.requires_grad]
    yield
    for parameter, data in before:
        parameter.data = data.to(parameter.device)


def _pairs(encoded: Sequence[Sequence[Any]]) -> list[AnswerPair]:
    return [AnswerPair(*answers) for answers in encoded if answers]


def _collate(pairs: Sequence[AnswerPair], run: Run) -> dict[str, torch.Tensor]:
    """As TRL wants it, (2 · pairs, tokens): the better answers, then the worse. What the base makes of them, (pairs,)
    each, is their log likelihood."""
    sides = [pair.chosen for pair in pairs], [pair.rejected for pair in pairs]
    batch = run.task.collate([*sides[0], *sides[1]], run.base.inputs)
    learnt = batch.pop("labels") != IGNORED
    chosen, rejected = (torch.tensor([-cast(float, answer.reference) for answer in side]) for side in sides)
    return {**batch, "completion_mask": learnt.long(), "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

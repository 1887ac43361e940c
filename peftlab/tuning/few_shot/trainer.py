"""Contrastive training: states of the same class move together; the head is a linear probe on the tuned states.

After SetFit (Tunstall et al. 2022, arXiv:2209.11055), whose pairs we draw batch by batch, and FastFit (Yehudai and
Bandel 2024, arXiv:2404.12365), whose label texts are further rows.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from peftlab.base.pooled_model import pool
from peftlab.tasks import Feature
from peftlab.tuning.baselines.linear_probe import DEFAULT_STRENGTH, fit_probe
from peftlab.tuning.batching import TokenLoader
from peftlab.tuning.few_shot.batches import ClassBatches
from peftlab.tuning.few_shot.label_texts import choose_label_texts
from peftlab.tuning.few_shot.loss import supervised_contrastive_loss
from peftlab.tuning.few_shot.states import label_text_states, row_states
from peftlab.tuning.trainer import ListDataset, TaskTrainer

TEMPERATURE = 0.1
ROWS_AT_ONCE = 8
"""Rows per forward pass: a batch is divided by length, so that short rows are not padded to the longest one."""
PARTS = "parts"


class ContrastiveTrainer(TaskTrainer):
    """Trains the delta by a contrastive loss; a linear probe on its states replaces the head at each evaluation."""

    def __init__(self, run: Any, *args: Any, **kwargs: Any) -> None:
        self.label_texts = choose_label_texts(run)
        self.output_layer = run.base.model.get_submodule(run.base.output_layer or "")
        super().__init__(run, *args, **kwargs)

    def rows(self) -> Sequence[Feature]:
        """The training rows, then the labels' texts."""
        return [*self.run.train_features, *self.label_texts.features]

    def dataset(self) -> Dataset[Any]:
        """See `rows`."""
        return ListDataset(self.rows())

    def collator(self) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """Rows → a batch in parts of similar length, each padded alone."""
        return self._collate

    def _collate(self, batch: Sequence[Feature]) -> dict[str, Any]:
        rows = sorted(batch, key=len)
        head, inputs = self.run.task.head, self.run.base.inputs
        size = len(rows) if self.run.process_group.world_size > 1 else ROWS_AT_ONCE  # DDP expects one forward pass
        return {PARTS: [head.collate(rows[at : at + size], inputs) for at in range(0, len(rows), size)]}

    def mean_loss(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """The contrastive loss plus that of the task, and the model's last output."""
        states, logits, labels = [], [], []
        for part in inputs[PARTS]:
            labels.append(part.pop("labels"))
            with self._captured_states(part) as captured, self.run.autocast():
                output = model(**part)
            states += captured
            logits.append(self.run.task.head.logits(output).float())
        targets = torch.cat(labels)
        contrastive = supervised_contrastive_loss(torch.cat(states), targets, TEMPERATURE)
        return contrastive + self.run.task.head.loss(torch.cat(logits), targets), output

    @contextmanager
    def _captured_states(self, inputs: dict[str, Tensor]) -> Iterator[list[Tensor]]:
        """Inside the block, the list receives what the head's output layer reads, (batch, width)."""
        captured: list[Tensor] = []
        mask = self.run.base.inputs.mask(inputs)

        def capture(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            states = args[0]
            captured.append(pool(states, mask, "last") if states.dim() == 3 else states)

        hook = self.output_layer.register_forward_pre_hook(capture)
        try:
            yield captured
        finally:
            hook.remove()

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches by class; see `ClassBatches`."""
        run, settings = self.run, self.run.recipe.training
        labels = [feature.labels for feature in run.train_features]
        batches = ClassBatches(
            labels,
            settings.per_device_train_batch_size,
            settings.seed,
            anchors=range(len(labels), len(labels) + len(self.label_texts.features)),
            accumulation_steps=settings.gradient_accumulation_steps,
            rank=run.process_group.rank,
            world_size=run.process_group.world_size,
        )
        return TokenLoader(cast(Any, self.train_dataset), batches, self.data_collator)

    def fit_head(self) -> None:
        """Replace the head's output layer by a linear probe on the states of all training rows and labels' texts."""
        run, texts = self.run, self.label_texts
        states = row_states(run)
        if texts.features:
            states = texts.extend(states, label_text_states(run, texts.features))
        layer = cast(torch.nn.Linear, self.output_layer)
        fit_probe(states, run.task.head, strength=DEFAULT_STRENGTH, with_bias=layer.bias is not None).copy_to(layer)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Fit the head, then score the validation split; the checkpoint of the epoch contains this head."""
        with self.run.autocast():
            self.fit_head()
        return super().evaluate(*args, **kwargs)

    def finish(self) -> None:
        """Fit the head to the states of the final weights, in the precision in which they predict."""
        self.fit_head()

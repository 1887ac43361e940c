"""Transformers' Trainer, fed with the features, the loss and the scores of one task."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainingArguments

from peftlab.methods import METHODS
from peftlab.tasks import Feature, Scores
from peftlab.tuning.batching import TokenBatches, TokenLoader
from peftlab.tuning.distributed.backends import backend_arguments
from peftlab.tuning.preference.reference import preserve_requires_grad
from peftlab.tuning.run import Run

LOGS_PER_EPOCH = 10
WEIGHT = "loss_weight"
"""What a batch counts in its step: its loss terms over those of an average batch, so that each term counts the same."""


class TaskTrainer(Trainer):
    """A Trainer that validates on decoded predictions of the task, not on padded logits."""

    control: TrainerControl
    optimizer: torch.optim.Optimizer | None

    def __init__(self, run: Run, validate: Callable[[], Scores], folder: Path, **kwargs: Any) -> None:
        self.run, self.validate = run, validate
        self.hooks = METHODS[run.recipe.method.type].training
        super().__init__(
            model=run.model,
            args=self.arguments(run, folder),
            train_dataset=self.dataset(),
            eval_dataset=_Listed(run.dataset.examples["validation"]),
            data_collator=self.collator(),
            **kwargs,
        )
        if isinstance(self.train_dataset, _Rows):
            self.add_callback(_EachEpoch(self.train_dataset))
        # the loss is the task's, a mean: Trainer is to divide it by the batches that a step sums up
        self.model_accepts_loss_kwargs = False

    @staticmethod
    def arguments(run: Run, folder: Path) -> TrainingArguments:
        """What Trainer is told."""
        return training_arguments(run, folder, len(run.train_features))

    def rows(self) -> Sequence[Any]:
        """What training batches are made of, each as long as it has tokens."""
        return self.run.train_features

    def dataset(self) -> Dataset[Any]:
        """The same as the collator takes them."""
        return _Rows(self.run)

    def loss_terms(self, row: Any) -> int:
        """Over how many terms a batch's loss takes the mean in one of its rows."""
        return self.run.task.loss_terms(row)

    def collator(self) -> Callable[[Sequence[Any]], dict[str, torch.Tensor]]:
        """Rows → a batch: padded, or packed."""
        run, inputs = self.run, self.run.base.inputs
        if run.recipe.training.packing:
            return partial(inputs.pack, length=run.dataset.max_length)
        return partial(run.task.collate, inputs=inputs)

    def mean_loss(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        """The task's own loss of a batch, and what the model gives."""
        labels = inputs.pop("labels")
        with self.run.autocast():
            output = model(**inputs)
        return self.run.task.loss(self.run.task.logits(output).float(), labels), output

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """By `mean_loss`; see `Trainer.compute_loss`."""
        weight = inputs.pop(WEIGHT, 1.0)
        loss, output = self.mean_loss(model, inputs)
        loss = weight * loss
        if self.hooks.loss:
            loss = loss + self.hooks.loss(self.run.model, self.run.recipe.method)
        return (loss, output) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> Any:
        """The method's own optimizer, if it has one; see `Trainer`."""
        if self.hooks.optimizer and self.optimizer is None:
            chosen = self.get_optimizer_cls_and_kwargs(self.args, model or self.model)
            self.optimizer = self.hooks.optimizer(
                model or self.model, self.run.recipe.method, *chosen, self.args.weight_decay
            )
        return super().create_optimizer(model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """What trains stays what it was: after PEFT has loaded AdaLoRA's weights, its frozen counts would train."""
        with preserve_requires_grad(self.run.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of about the same number of tokens, or rows at random; see `Trainer`."""
        settings, rows = self.run.recipe.training, self.rows()
        if settings.train_sampling_strategy == "random":
            return super().get_train_dataloader()
        batches = TokenBatches(
            [len(row) for row in rows],
            settings.per_device_train_batch_size,
            settings.seed,
            together=settings.gradient_accumulation_steps,
            rank=self.run.process_group.rank,
            world=self.run.process_group.world_size,
        )
        share = batches.total / sum(map(self.loss_terms, rows))

        def collate(chosen: list[Any]) -> dict[str, Any]:
            return {**self.data_collator(chosen), WEIGHT: share * sum(map(self.loss_terms, chosen))}

        return TokenLoader(cast(Any, self.train_dataset), batches, collate)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: Trainer would walk through every parameter at every step."""
        return 0

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score the validation split; see `Trainer.evaluate`."""
        with self.run.autocast():
            scores = self.validate()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.values.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _Rows(Dataset[Any]):
    """Training features, drawn anew in each `epoch` where the task does so, whatever batch they are in."""

    def __init__(self, run: Run) -> None:
        self.features, self.seed, self.epoch = run.train_features, run.recipe.training.seed, 0
        self.redraw = run.task.dynamic_masking(run.base.inputs)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> Feature:
        feature = self.features[index]
        return self.redraw(feature, f"{self.seed} {self.epoch} {index}") if self.redraw else feature


class _EachEpoch(TrainerCallback):
    """Tells the rows which epoch it is: where a loader goes on in the middle of one, Trainer tells only its sampler."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before its first batch, or the first after those that a checkpoint has done."""
        self.rows.epoch = int(state.epoch or 0)


class _Listed(Dataset[Any]):
    """A list as the Dataset that Trainer asks for."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def training_arguments(
    run: Run, folder: Path, rows: int, kind: type[TrainingArguments] = TrainingArguments, **more: Any
) -> TrainingArguments:
    """Our stable names → those of the installed Transformers, for so many training rows; `more` is for `kind`."""
    settings = run.recipe.training
    batch = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * run.process_group.world_size
    arguments = kind(
        output_dir=str(folder),
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.num_train_epochs,
        per_device_train_batch_size=settings.per_device_train_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_ratio,  # 5.x reads a number below 1 as a share of the steps
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim=settings.optim,
        seed=settings.seed,
        fp16=run.dtype == torch.float16,  # for its scaled loss
        data_seed=settings.seed,  # one order of rows in all processes, whose other random numbers differ
        use_cpu=run.device.type == "cpu",
        dataloader_pin_memory=run.device.type == "cuda",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,  # the best and the last; with 1, Trainer deletes the last at the end of an interrupted run
        load_best_model_at_end=True,
        metric_for_best_model=run.task.main_score,
        greater_is_better=not run.task.smaller_is_better,
        logging_steps=max(1, rows // batch // LOGS_PER_EPOCH),
        logging_nan_inf_filter=False,  # what diverges is to be seen, see `divergence`
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        **backend_arguments(run),
        **more,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs and one process: not torch's old DataParallel
    return arguments

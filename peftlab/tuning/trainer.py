"""Transformers' Trainer with the features, the loss and the scores of a task."""

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
from peftlab.tuning.parameter_groups import head_parameters, set_learning_rate
from peftlab.tuning.preference.reference import preserve_requires_grad
from peftlab.tuning.run import Run

LOGS_PER_EPOCH = 10
SAVE_SHARE = 0.2  # of the steps, between the checkpoints of a run without validation
LOSS_WEIGHT = "loss_weight"
"""Key of a batch's weight: its number of loss terms over that of an average batch, so that all terms count equally."""


class TaskTrainer(Trainer):
    """A Trainer that validates on the decoded predictions of the task, not on padded logits."""

    control: TrainerControl
    optimizer: torch.optim.Optimizer | None

    def __init__(self, run: Run, validate: Callable[[], Scores], folder: Path, **kwargs: Any) -> None:
        self.run, self.validate = run, validate
        self.hooks = METHODS[run.recipe.method.type].training
        super().__init__(
            model=run.model,
            args=self.arguments(run, folder),
            train_dataset=self.dataset(),
            eval_dataset=ListDataset(run.dataset.examples["validation"]) if run.has_validation else None,
            data_collator=self.collator(),
            **kwargs,
        )
        if isinstance(self.train_dataset, _FeatureDataset):
            self.add_callback(_SetEpoch(self.train_dataset))
        # the task's loss is a mean, so Trainer must divide it by the number of accumulated batches
        self.model_accepts_loss_kwargs = False

    @staticmethod
    def arguments(run: Run, folder: Path) -> TrainingArguments:
        """The arguments of Trainer."""
        return training_arguments(run, folder, len(run.train_features))

    def rows(self) -> Sequence[Any]:
        """The training rows; `len(row)` is its number of tokens."""
        return self.run.train_features

    def dataset(self) -> Dataset[Any]:
        """The training rows as input of the collator."""
        return _FeatureDataset(self.run)

    def loss_terms(self, row: Any) -> int:
        """Number of terms that a row adds to the mean loss of its batch."""
        return self.run.task.head.loss_terms(row)

    def collator(self) -> Callable[[Sequence[Any]], dict[str, torch.Tensor]]:
        """Rows → a padded or packed batch."""
        run, inputs = self.run, self.run.base.inputs
        if run.recipe.training.packing:
            return partial(inputs.pack, length=run.dataset.max_length)
        return partial(run.task.head.collate, inputs=inputs)

    def mean_loss(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        """The task's loss of a batch, and the model's output."""
        labels = inputs.pop("labels")
        with self.run.autocast():
            output = model(**inputs)
        return self.run.task.head.loss(self.run.task.head.logits(output).float(), labels), output

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted loss of a batch; see `Trainer.compute_loss`."""
        loss_weight = inputs.pop(LOSS_WEIGHT, 1.0)
        loss, output = self.mean_loss(model, inputs)
        loss = loss_weight * loss
        if self.hooks.loss:
            loss = loss + self.hooks.loss(self.run.model, self.run.recipe.method)
        return (loss, output) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> Any:
        """The method's own optimizer, if it has one; see `Trainer.create_optimizer`."""
        if self.hooks.optimizer and self.optimizer is None:
            chosen = self.get_optimizer_cls_and_kwargs(self.args, model or self.model)
            self.optimizer = self.hooks.optimizer(
                model or self.model, self.run.recipe.method, *chosen, self.args.weight_decay
            )
        optimizer = super().create_optimizer(model)
        if rate := self.run.recipe.training.head_learning_rate:
            set_learning_rate(optimizer, head_parameters(model or self.model, self.run.base.head_modules), rate)
        return optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Keep `requires_grad` of all parameters: PEFT would make AdaLoRA's frozen rank counts trainable."""
        with preserve_requires_grad(self.run.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of about equal numbers of tokens, or random rows; see `Trainer.get_train_dataloader`."""
        settings, rows = self.run.recipe.training, self.rows()
        if settings.train_sampling_strategy == "random":
            return super().get_train_dataloader()
        batches = TokenBatches(
            [len(row) for row in rows],
            settings.per_device_train_batch_size,
            settings.seed,
            accumulation_steps=settings.gradient_accumulation_steps,
            rank=self.run.process_group.rank,
            world_size=self.run.process_group.world_size,
        )
        weight_per_term = batches.total / sum(map(self.loss_terms, rows))

        def collate(batch: list[Any]) -> dict[str, Any]:
            weight = weight_per_term * sum(map(self.loss_terms, batch))
            return {**self.data_collator(batch), LOSS_WEIGHT: weight}

        return TokenLoader(cast(Any, self.train_dataset), batches, collate)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """See `Run.keeps_latest_tie`."""
        is_new_best = super()._determine_best_metric(metrics, trial)
        if self.run.keeps_latest_tie and metrics[f"eval_{self.run.task.metric.name}"] == self.state.best_metric:
            self.state.best_global_step = self.state.global_step
        return is_new_best

    def finish(self) -> None:
        """Complete the model after training, outside of the training context; nothing by default."""

    def floating_point_ops(self, inputs: Any) -> int:
        """0, because Trainer would iterate over all parameters in every step to count."""
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


class _FeatureDataset(Dataset[Any]):
    """Training features; with dynamic masking, the masks depend on `epoch` and row, not on the batch."""

    def __init__(self, run: Run) -> None:
        self.features, self.seed, self.epoch = run.train_features, run.recipe.training.seed, 0
        self.mask = run.task.targets.sampler(run.base.inputs)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> Feature:
        feature = self.features[index]
        return self.mask(feature, f"{self.seed} {self.epoch} {index}") if self.mask else feature


class _SetEpoch(TrainerCallback):
    """Sets the epoch of the dataset: in an epoch that is resumed, Trainer sets only the sampler's."""

    def __init__(self, dataset: _FeatureDataset) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called before the first batch, or before the first batch after a checkpoint."""
        self.dataset.epoch = int(state.epoch or 0)


class ListDataset(Dataset[Any]):
    """A list as the Dataset that Trainer requires."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def _checkpoint_arguments(run: Run) -> dict[str, Any]:
    """When to score and to save: after each epoch, to keep the best one, if there are validation rows."""
    if run.is_fold:
        return {"eval_strategy": "no", "save_strategy": "no"}
    if not run.has_validation:
        return {"eval_strategy": "no", "save_strategy": "steps", "save_steps": SAVE_SHARE, "save_total_limit": 1}
    return {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 2,  # best and last; with 1, Trainer deletes the last at the end of an interrupted run
        "load_best_model_at_end": True,
        "metric_for_best_model": run.task.metric.name,
        "greater_is_better": run.task.metric.greater_is_better,
    }


def training_arguments(
    run: Run, folder: Path, num_rows: int, arguments_class: type[TrainingArguments] = TrainingArguments, **extra: Any
) -> TrainingArguments:
    """The recipe's training section as arguments of the installed Transformers; `extra` is for `arguments_class`."""
    settings = run.recipe.training
    assert settings.warmup_ratio is not None  # see `choose_schedule`
    batches_per_step = settings.gradient_accumulation_steps * run.process_group.world_size
    rows_per_step = settings.per_device_train_batch_size * batches_per_step
    arguments = arguments_class(
        output_dir=str(folder),
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.num_train_epochs or 1,
        max_steps=settings.max_steps or -1,  # overrides the epochs
        per_device_train_batch_size=settings.per_device_train_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_ratio,  # Transformers 5 reads a number below 1 as a ratio
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim=settings.optim,
        seed=settings.seed,
        fp16=run.dtype == torch.float16,  # turns on loss scaling
        data_seed=settings.seed,  # the same row order in all processes, whose other seeds differ
        use_cpu=run.device.type == "cpu",
        dataloader_pin_memory=run.device.type == "cuda",
        **_checkpoint_arguments(run),
        logging_steps=max(1, num_rows // rows_per_step // LOGS_PER_EPOCH),
        logging_nan_inf_filter=False,  # `DivergenceCallback` must see them
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        **backend_arguments(run),
        **extra,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # one process on several GPUs must not use torch's DataParallel
    return arguments

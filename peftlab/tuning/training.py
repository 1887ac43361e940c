"""Transformers' Trainer on the features of one task: best checkpoint by validation score, early stop, resume."""

import json
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainingArguments,
)

from peftlab.errors import Problems, TuningInterrupted
from peftlab.tasks import Feature, Scores
from peftlab.tasks.predicting import predict_features
from peftlab.tuning.batching import TokenBatches, TokenLoader
from peftlab.tuning.checkpoints import how_to_go_on, last_checkpoint
from peftlab.tuning.distributed import Processes, noticing_losses
from peftlab.tuning.engines import divided, engine_arguments, idle_gpus
from peftlab.tuning.fast import fast_steps
from peftlab.tuning.frozen_prefix import frozen_prefix
from peftlab.tuning.progress import Progress
from peftlab.tuning.run import Run

LOGS_PER_EPOCH = 10
NOTE = "run.json"
WEIGHT = "loss_weight"
"""What a batch counts in its step: its loss terms over those of an average batch, so that each term counts the same."""


def train(run: Run, folder: Path, *, resume: bool, progress: Progress) -> list[dict[str, float]]:
    """Train delta and head with checkpoints in `folder`, leave the best in `run.model`, and return the Trainer's log.

    Raises:
        RecipeError: `resume` is asked for, but recipe, data or base are not those of the interrupted run.
        TuningInterrupted: the user stopped it; a checkpoint is saved first.
        ProcessLostError: another process of the run has ended.
    """
    if idle := idle_gpus(run):
        progress.warn(idle)
    checkpoint = run.processes.from_first(lambda: _prepared(run, folder, progress, resume=resume))
    trainer = _trainer(run, folder, progress)
    interruption = Interruption(run.processes)
    trainer.add_callback(interruption)
    run.processes.differ_by_chance(run.recipe.training.seed)
    try:
        with _fast(run, folder, progress), interruption.listening(), noticing_losses(lambda: _lost(folder)):
            trainer.train(resume_from_checkpoint=checkpoint)
            stopped = run.processes.any(interruption.asked)
    except KeyboardInterrupt:
        stopped = True
    if stopped:
        raise _interrupted(trainer, folder)
    progress.training_ended(stopped_early=trainer.state.global_step < trainer.state.max_steps)
    return list(trainer.state.log_history)


@contextmanager
def _fast(run: Run, folder: Path, progress: Progress) -> Iterator[None]:
    """Whatever makes training faster, where each process holds the whole base."""
    if run.sharded:
        yield
        return
    inputs = run.inputs_of(run.features[:1])
    with fast_steps(run.model, run.recipe, run.dtype, inputs), frozen_prefix(run, folder, progress):
        yield


def _lost(folder: Path) -> str:
    return f"Nothing was published. {how_to_go_on(folder)}"


def evaluate(run: Run, split: str) -> Scores:
    """Scores of decoded predictions, by the very way that serving predicts; validation calibrates decoding."""
    predictions = predict_features(
        run.task,
        run.model,
        run.base.tokenizer,
        run.examples[split],
        run.encoded[split],
        batch_size=run.recipe.training.per_device_eval_batch_size,
        through=divided(run.processes, sharded=run.sharded),
    )
    if split == "validation":
        predictions = list(run.task.calibrate(run.examples[split], predictions))
    scores = run.task.score(run.examples[split], predictions)
    return Scores.from_dict(run.processes.from_first(scores.as_dict))  # no rounding may let processes disagree


class TaskTrainer(Trainer):
    """A Trainer that validates on decoded predictions of the task, not on padded logits."""

    control: TrainerControl

    def __init__(self, run: Run, **kwargs: Any) -> None:
        self.run = run
        super().__init__(
            model=run.model,
            train_dataset=_Listed(run.features),
            eval_dataset=_Listed(run.examples["validation"]),
            data_collator=lambda features: run.task.collate(features, run.base.tokenizer),
            **kwargs,
        )
        self.model_accepts_loss_kwargs = (
            False  # the loss is the task's, a mean: Trainer divides it by the batches summed
        )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The task's own loss; see `Trainer.compute_loss`."""
        labels, weight = inputs.pop("labels"), inputs.pop(WEIGHT, 1.0)
        with self.run.precision():
            output = model(**inputs)
        loss = weight * self.run.task.loss(self.run.task.logits(output).float(), labels)
        return (loss, output) if return_outputs else loss

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of about the same number of tokens, or rows at random; see `Trainer`."""
        settings, features, task = self.run.recipe.training, self.run.features, self.run.task
        if settings.train_sampling_strategy == "random":
            return super().get_train_dataloader()
        batches = TokenBatches(
            [len(feature) for feature in features],
            settings.per_device_train_batch_size,
            settings.seed,
            together=settings.gradient_accumulation_steps,
            rank=self.run.processes.index,
            world=self.run.processes.count,
        )
        share = batches.total / sum(task.loss_terms(feature) for feature in features)

        def collate(chosen: list[Feature]) -> dict[str, Any]:
            return {**self.data_collator(chosen), WEIGHT: share * sum(map(task.loss_terms, chosen))}

        return TokenLoader(cast(Any, self.train_dataset), batches, collate)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: Trainer would walk through every parameter at every step."""
        return 0

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score the validation split; see `Trainer.evaluate`."""
        with self.run.precision():
            scores = evaluate(self.run, "validation")
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.values.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _Listed(Dataset[Any]):
    """A list as the Dataset that Trainer asks for."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Telling(TrainerCallback):
    """Passes the Trainer's events on to a `Progress`."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Training begins."""
        self.progress.training_started(state.max_steps, int(args.num_train_epochs), state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One optimizer step."""
        self.progress.step_done(state.global_step, None)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """The mean loss since the last log."""
        if "loss" in logs:
            self.progress.step_done(state.global_step, logs["loss"])

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """The validation split is scored."""
        scores = {name.removeprefix("eval_"): value for name, value in metrics.items()}
        best = state.best_metric is None or scores[args.metric_for_best_model] > state.best_metric
        self.progress.epoch_done(state.epoch, scores, best=best)


class Patience(EarlyStoppingCallback):
    """Early stopping that begins to count once the score has left 0, where F1 of rare labels stays for some epochs."""

    def check_metric_value(self, args: Any, state: Any, control: Any, metric_value: float) -> None:
        """See `EarlyStoppingCallback`."""
        if state.best_metric:
            super().check_metric_value(args, state, control, metric_value)


class Interruption(TrainerCallback):
    """Ctrl-C or SIGTERM: finish the step, save a checkpoint, stop. A second one stops at once.

    Signals reach several processes at different times, so they agree after each step whether to stop.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.asked = self.agreed = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals inside the block (Python allows it in the main thread only)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop after this step, if asked to."""
        self.agreed = self.processes.any(self.asked)
        if self.agreed:
            control.should_save = control.should_training_stop = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Asked while validating: the epoch's checkpoint is about to be saved anyway."""
        control.should_training_stop |= self.processes.any(self.asked)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Trainer takes a stop for the end of an epoch: do not score and save once more."""
        if self.agreed and control.should_training_stop:
            control.should_save = control.should_evaluate = False


def _interrupted(trainer: Trainer, folder: Path) -> TuningInterrupted:
    steps = f"step {trainer.state.global_step} of {trainer.state.max_steps}"
    return TuningInterrupted(f"stopped after {steps}; nothing was published. {how_to_go_on(folder)}")


def _trainer(run: Run, folder: Path, progress: Progress) -> TaskTrainer:
    callbacks: list[TrainerCallback] = [Telling(progress)]
    if run.recipe.training.early_stopping_patience:
        callbacks.append(Patience(run.recipe.training.early_stopping_patience))
    trainer = TaskTrainer(run, args=_arguments(run, folder), callbacks=callbacks)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(run: Run, folder: Path) -> TrainingArguments:
    """Our stable names → those of the installed Transformers."""
    settings = run.recipe.training
    batch = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * run.processes.count
    arguments = TrainingArguments(
        output_dir=str(folder),
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.num_train_epochs,
        per_device_train_batch_size=settings.per_device_train_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_ratio,  # 5.x reads a number below 1 as a share of the steps
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
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
        greater_is_better=True,
        logging_steps=max(1, len(run.features) // batch // LOGS_PER_EPOCH),
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        **engine_arguments(run),
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs and one process: not torch's old DataParallel
    return arguments


def _prepared(run: Run, folder: Path, progress: Progress, *, resume: bool) -> str | None:
    """Note in `folder` what is trained there; the checkpoint to go on from, if any."""
    checkpoint = _checkpoint(run, folder, progress) if resume else None
    (folder / NOTE).write_text(json.dumps(run.identity), encoding="utf8")
    return checkpoint


def _checkpoint(run: Run, folder: Path, progress: Progress) -> str | None:
    """The last checkpoint of an interrupted run of the very same recipe, data and base."""
    note = folder / NOTE
    checkpoint = last_checkpoint(folder) if note.is_file() else None
    if checkpoint is None:
        progress.warn(f"there is no checkpoint in {folder} to resume from; starting at the beginning.")
        return None
    before = json.loads(note.read_text(encoding="utf8"))
    with Problems() as problems:
        for what, now in run.identity.items():
            if before.get(what, now) != now:
                message = f"cannot resume: the {what} is not that of the interrupted run."
                problems.add(message, hint="Change it back, or start anew without --resume.")
    return str(checkpoint)

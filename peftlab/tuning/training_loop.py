"""Run Trainer: best checkpoint by validation score, early stopping, interruption."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from transformers import PrinterCallback, Trainer, TrainerCallback

from peftlab.errors import TuningInterrupted
from peftlab.methods import METHODS
from peftlab.tuning.callbacks import EarlyStopping, ProgressReporter, StopOnSignal
from peftlab.tuning.checkpoints import finished_steps, record_finished, resume_hint
from peftlab.tuning.distributed.backends import idle_gpus_warning
from peftlab.tuning.distributed.process_group import detect_dead_ranks
from peftlab.tuning.divergence import DivergenceCallback
from peftlab.tuning.evaluate import evaluate_split
from peftlab.tuning.fast import fast_steps
from peftlab.tuning.frozen.activation_cache import cached_activations
from peftlab.tuning.memory import gradient_checkpointing, release_freed_memory
from peftlab.tuning.progress import Progress
from peftlab.tuning.run import Run
from peftlab.tuning.trainer import TaskTrainer
from peftlab.tuning.trainers import trainer_record


def run_trainer(
    run: Run, folder: Path, *, progress: Progress, checkpoint: Path | None = None
) -> list[dict[str, float]]:
    """Train delta and head, resuming from `checkpoint` if given, and return the log.

    Checkpoints are in `folder`. `run.model` gets the best epoch, or the last one without a validation split.

    Raises:
        TuningInterrupted: the user stopped the run, after a checkpoint was saved.
        TuningDiverged: the weights became NaN or infinite before an epoch was scored.
        ProcessLostError: another process of the run has ended.
    """
    if (warning := idle_gpus_warning(run)) and not run.is_fold:
        progress.warn(warning)
    trainer = _trainer(run, folder, progress)
    if checkpoint and (steps := finished_steps(folder)):
        trainer.args.max_steps = steps  # only the best checkpoint is loaded, to be published
    stop_on_signal, divergence = StopOnSignal(run.process_group), DivergenceCallback(run)
    trainer.add_callback(stop_on_signal)
    trainer.add_callback(divergence)
    run.process_group.seed_per_rank(run.recipe.training.seed)
    try:
        with training_context(run, folder, progress), stop_on_signal.handle_signals():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            stopped = run.process_group.any(stop_on_signal.stop_requested)
    except KeyboardInterrupt:
        stopped = True
    if stopped:
        raise _interrupted(run, trainer, folder)
    divergence.report(trainer.state, progress)
    trainer.finish()
    if run.process_group.is_main:
        record_finished(folder)
    release_freed_memory()
    finished = trainer.state.global_step >= trainer.state.max_steps or divergence.detected
    progress.on_train_end(stopped_early=not finished)
    return list(trainer.state.log_history)


@contextmanager
def training_context(run: Run, folder: Path, progress: Progress) -> Iterator[None]:
    """Inside the block the model has the recipe's memory settings and the fastest training functions.

    Raises:
        ProcessLostError: another process of the run has ended.
    """
    training = run.recipe.training
    with ExitStack() as stack:
        stack.enter_context(detect_dead_ranks(lambda: f"Nothing was published. {resume_hint(folder)}"))
        if not run.sharded:
            inputs = run.model_inputs(run.train_features[:1])
            stack.enter_context(fast_steps(run.model, run.recipe, run.dtype, inputs))
            stack.enter_context(cached_activations(run, folder, progress))
        stack.enter_context(gradient_checkpointing(run.model.get_base_model(), enabled=training.gradient_checkpointing))
        yield


def _interrupted(run: Run, trainer: Trainer, folder: Path) -> TuningInterrupted:
    if run.is_fold:
        return TuningInterrupted(
            "stopped during the cross-validation; nothing was published. Start again with the same command."
        )
    steps = f"step {trainer.state.global_step} of {trainer.state.max_steps}"
    return TuningInterrupted(f"stopped after {steps}; nothing was published. {resume_hint(folder)}")


def _trainer(run: Run, folder: Path, progress: Progress) -> TaskTrainer:
    callbacks: list[TrainerCallback] = [ProgressReporter(progress, run.keeps_latest_tie)]
    patience = run.recipe.training.early_stopping_patience
    if isinstance(patience, int) and run.has_validation:
        callbacks.append(EarlyStopping(patience))
    method = run.recipe.method
    if make_callbacks := METHODS[method.type].training.callbacks:
        callbacks += make_callbacks(run.model, method, progress.warn)
    trainer_class = trainer_record(run.recipe).find_class()
    trainer = trainer_class(run, partial(evaluate_split, run, "validation"), folder, callbacks=callbacks)
    trainer.remove_callback(PrinterCallback)
    return trainer

"""Training and scoring: best checkpoint by validation score, early stop, interruption, resume."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from transformers import PrinterCallback, Trainer, TrainerCallback

from peftlab.errors import TuningInterrupted
from peftlab.recipe import AdaLora
from peftlab.tasks import Scores
from peftlab.tasks.prediction import predict_features
from peftlab.tuning.adalora import RankAllocation
from peftlab.tuning.callbacks import Interruption, Patience, Telling
from peftlab.tuning.checkpoints import how_to_go_on, note_run
from peftlab.tuning.distributed.backends import idle_gpus
from peftlab.tuning.distributed.process_group import noticing_losses
from peftlab.tuning.divergence import Divergence, warn_of_collapse
from peftlab.tuning.fast import fast_steps
from peftlab.tuning.frozen.activation_cache import frozen_prefix
from peftlab.tuning.memory import layers_computed_again, return_freed_memory
from peftlab.tuning.preference.reference import referred, through
from peftlab.tuning.progress import Progress
from peftlab.tuning.run import Run
from peftlab.tuning.trainer import TaskTrainer


def train(run: Run, folder: Path, *, resume: bool, progress: Progress) -> list[dict[str, float]]:
    """Train delta and head with checkpoints in `folder`, leave the best in `run.model`, and return the Trainer's log.

    Raises:
        RecipeError: `resume` is asked for, but recipe, data or base are not those of the interrupted run.
        TuningInterrupted: the user stopped it; a checkpoint is saved first.
        TuningDiverged: the weights were no numbers any more before an epoch was scored.
        ProcessLostError: another process of the run has ended.
    """
    if idle := idle_gpus(run):
        progress.warn(idle)
    checkpoint = run.processes.from_first(lambda: note_run(folder, run.identity, progress, resume=resume))
    trainer = _trainer(run, folder, progress)
    interruption, divergence = Interruption(run.processes), Divergence(run)
    trainer.add_callback(interruption)
    trainer.add_callback(divergence)
    run.processes.differ_by_chance(run.recipe.training.seed)
    try:
        with _computed_so(run, folder, progress), interruption.listening(), noticing_losses(lambda: _lost(folder)):
            trainer.train(resume_from_checkpoint=checkpoint)
            stopped = run.processes.any(interruption.asked)
    except KeyboardInterrupt:
        stopped = True
    if stopped:
        raise _interrupted(trainer, folder)
    divergence.settle(trainer.state, progress)
    return_freed_memory()
    impatient = trainer.state.global_step < trainer.state.max_steps and not divergence.seen
    progress.training_ended(stopped_early=impatient)
    return list(trainer.state.log_history)


@contextmanager
def _computed_so(run: Run, folder: Path, progress: Progress) -> Iterator[None]:
    """In the memory that the recipe allows, and with whatever is faster where each process holds the whole base."""
    again = run.recipe.training.gradient_checkpointing
    with ExitStack() as stack:
        if not run.sharded:
            inputs = run.inputs_of(run.features[:1])
            stack.enter_context(fast_steps(run.model, run.recipe, run.dtype, inputs))
            stack.enter_context(frozen_prefix(run, folder, progress))
        stack.enter_context(layers_computed_again(run.model.get_base_model(), wanted=again))
        yield


def _lost(folder: Path) -> str:
    return f"Nothing was published. {how_to_go_on(folder)}"


def score(run: Run, progress: Progress) -> dict[str, Scores]:
    """Scores of every split but the training one; it is said where validation shows that nothing was learnt."""
    scores = {split: evaluate(run, split) for split in run.examples if split != "train"}
    warn_of_collapse(run.recipe, run.task, scores["validation"], progress)
    return scores


def evaluate(run: Run, split: str) -> Scores:
    """Scores of decoded predictions, by the very way that serving predicts; validation calibrates decoding."""
    encoded = referred(run, run.encoded[split])
    predictions = predict_features(run.task, run.examples[split], encoded, through(run))
    if split == "validation":
        predictions = list(run.task.calibrate(run.examples[split], predictions))
    scores = run.task.score(run.examples[split], predictions)
    return Scores.from_dict(run.processes.from_first(scores.as_dict))  # no rounding may let processes disagree


def _interrupted(trainer: Trainer, folder: Path) -> TuningInterrupted:
    steps = f"step {trainer.state.global_step} of {trainer.state.max_steps}"
    return TuningInterrupted(f"stopped after {steps}; nothing was published. {how_to_go_on(folder)}")


def _trainer(run: Run, folder: Path, progress: Progress) -> TaskTrainer:
    callbacks: list[TrainerCallback] = [Telling(progress)]
    if run.recipe.training.early_stopping_patience:
        callbacks.append(Patience(run.recipe.training.early_stopping_patience))
    if isinstance(method := run.recipe.method, AdaLora):
        callbacks.append(RankAllocation(run, method, progress))
    trainer = _trainer_class(run)(run, partial(evaluate, run, "validation"), folder, callbacks=callbacks)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _trainer_class(run: Run) -> type[TaskTrainer]:
    if not run.task.needs_reference:
        return TaskTrainer
    from peftlab.tuning.preference.trainer import PreferenceTrainer  # TRL is an extra

    return PreferenceTrainer

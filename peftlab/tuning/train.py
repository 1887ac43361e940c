"""The training step: cross-validation if there are few rows, then the adapter; resuming."""

from dataclasses import replace

from peftlab.tuning.checkpoints import last_checkpoint, record_run
from peftlab.tuning.cross_validation import cross_validate
from peftlab.tuning.distributed.backends import unshard
from peftlab.tuning.run import Run
from peftlab.tuning.session import TuningSession
from peftlab.tuning.training_loop import run_trainer


def train(run: Run, session: TuningSession) -> Run:
    """The trained run, on an unsharded base, with Trainer's `log`.

    Its model is that of the best epoch, or of the last one if no validation rows are held out. A run that is
    resumed after its last step is only loaded.

    Raises:
        StoreError: the checkpoints cannot be written.
        RecipeError: the session resumes a run with another recipe, data or base.
        TuningInterrupted, TuningDiverged, ProcessLostError: see `run_trainer`.
    """
    folder = session.open_run_folder(run.recipe.name, run.checkpoint_bytes)
    run.process_group.broadcast(lambda: record_run(folder, run.identity, session.progress, resume=session.resume))
    run = replace(run, folder=folder)
    if run.dataset.folds:
        run = replace(run, cross_validation=cross_validate(run, folder, session.progress))
    checkpoint = last_checkpoint(folder) if session.resume else None
    log = run_trainer(run, folder, checkpoint=checkpoint, progress=session.progress)
    return replace(unshard(run, folder), log=log)

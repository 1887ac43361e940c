"""Trainer's checkpoints: find the last complete one, and check that it belongs to the run."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from peftlab.errors import ErrorCollector
from peftlab.tuning.progress import Progress

RUN_FILE = "run.json"
TRAINER_STATE = "trainer_state.json"  # Trainer writes it last
FINISHED_FILE = "finished.json"
CHECKPOINT_NAME = re.compile(r"checkpoint-([0-9]+)")


def last_checkpoint(folder: Path) -> Path | None:
    """The last complete checkpoint in `folder`, or None; a killed process may have left an incomplete one."""
    folders = {int(name[1]): path for path in folder.glob("*") if (name := CHECKPOINT_NAME.fullmatch(path.name))}
    complete = [step for step, path in folders.items() if (path / TRAINER_STATE).is_file()]
    return folders[max(complete)] if complete else None


def record_finished(folder: Path) -> None:
    """Note in `folder` that training is over: what is left is to publish its best checkpoint."""
    (folder / FINISHED_FILE).write_text("{}", encoding="utf8")


def finished_steps(folder: Path) -> int | None:
    """The number of steps of a run whose training is over; None if there is more to train."""
    checkpoint = last_checkpoint(folder)
    name = CHECKPOINT_NAME.fullmatch(checkpoint.name) if checkpoint else None
    return int(name[1]) if name and (folder / FINISHED_FILE).is_file() else None


def resume_hint(folder: Path) -> str:
    """A sentence that says which checkpoint of an ended run exists, and how to resume from it."""
    checkpoint = last_checkpoint(folder)
    if checkpoint is None:
        return "no checkpoint was saved yet."
    return f"{checkpoint} is kept: continue with the same command and --resume."


def record_run(folder: Path, identity: Mapping[str, str], progress: Progress, *, resume: bool) -> None:
    """Write the run's identity to `folder`; if the run resumes, compare it with that of the interrupted run first.

    Raises:
        RecipeError: what is in the folder belongs to another run.
    """
    note = folder / RUN_FILE
    if resume and note.is_file() and any(entry != note for entry in folder.iterdir()):
        _check_identity(json.loads(note.read_text(encoding="utf8")), identity)
    elif resume:
        progress.warn(f"there is no checkpoint in {folder} to resume from; training starts from the beginning.")
    note.write_text(json.dumps(identity), encoding="utf8")


def _check_identity(saved: Mapping[str, str], identity: Mapping[str, str]) -> None:
    """Add an error for each part of the identity that has changed."""
    with ErrorCollector() as errors:
        for name, value in identity.items():
            if saved.get(name, value) != value:
                message = f"cannot resume: the {name} is not that of the interrupted run."
                errors.add(message, hint="Change it back, or start again without --resume.")

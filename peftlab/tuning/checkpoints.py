"""The checkpoints of a tuning run, as Trainer writes them: the last whole one, and whether it fits the run."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from peftlab.errors import ErrorCollector
from peftlab.tuning.progress import Progress

RUN_FILE = "run.json"
TRAINER_STATE = "trainer_state.json"  # Trainer writes it last
CHECKPOINT_NAME = re.compile(r"checkpoint-([0-9]+)")


def last_checkpoint(folder: Path) -> Path | None:
    """The last whole checkpoint in `folder`, or None; one that a killed process was still writing does not count."""
    found = {int(name[1]): inside for inside in folder.glob("*") if (name := CHECKPOINT_NAME.fullmatch(inside.name))}
    whole = [step for step, checkpoint in found.items() if (checkpoint / TRAINER_STATE).is_file()]
    return found[max(whole)] if whole else None


def resume_hint(folder: Path) -> str:
    """What is kept of a run that ended early, and the way on, in words."""
    checkpoint = last_checkpoint(folder)
    if checkpoint is None:
        return "no checkpoint was saved yet."
    return f"{checkpoint} is kept: go on with the same command and --resume."


def record_run(folder: Path, identity: Mapping[str, str], progress: Progress, *, resume: bool) -> str | None:
    """Note in `folder` what is trained there; the checkpoint to go on from, if that is asked for and there is one.

    Raises:
        RecipeError: the checkpoint is that of another run.
    """
    checkpoint = _matching_checkpoint(folder, identity, progress) if resume else None
    (folder / RUN_FILE).write_text(json.dumps(identity), encoding="utf8")
    return checkpoint


def _matching_checkpoint(folder: Path, identity: Mapping[str, str], progress: Progress) -> str | None:
    """The last checkpoint of an interrupted run of the very same recipe, data and base."""
    note = folder / RUN_FILE
    checkpoint = last_checkpoint(folder) if note.is_file() else None
    if checkpoint is None:
        progress.warn(f"there is no checkpoint in {folder} to resume from; starting at the beginning.")
        return None
    before = json.loads(note.read_text(encoding="utf8"))
    with ErrorCollector() as errors:
        for what, now in identity.items():
            if before.get(what, now) != now:
                message = f"cannot resume: the {what} is not that of the interrupted run."
                errors.add(message, hint="Change it back, or start anew without --resume.")
    return str(checkpoint)

"""The checkpoints of a tuning run, as Trainer writes them: which is the last one that is whole."""

import re
from pathlib import Path

STATE = "trainer_state.json"  # Trainer writes it last
NAME = re.compile(r"checkpoint-([0-9]+)")


def last_checkpoint(folder: Path) -> Path | None:
    """The last whole checkpoint in `folder`, or None; one that a killed process was still writing does not count."""
    found = {int(name[1]): inside for inside in folder.glob("*") if (name := NAME.fullmatch(inside.name))}
    whole = [step for step, checkpoint in found.items() if (checkpoint / STATE).is_file()]
    return found[max(whole)] if whole else None


def how_to_go_on(folder: Path) -> str:
    """What is kept of a run that ended early, and the way on, in words."""
    checkpoint = last_checkpoint(folder)
    if checkpoint is None:
        return "no checkpoint was saved yet."
    return f"{checkpoint} is kept: go on with the same command and --resume."

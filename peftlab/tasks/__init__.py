"""TASKS: what goes in and comes out. One file a task, one line here."""

from peftlab.tasks.inputs.features import Feature
from peftlab.tasks.metrics.calibration import Calibration
from peftlab.tasks.outputs import Continuation
from peftlab.tasks.registry import TASKS, build_task, read_examples, restore_task, row_labels
from peftlab.tasks.task import Confusion, Example, ModelContext, Prediction, Scores, Task

__all__ = [
    "TASKS",
    "Calibration",
    "Confusion",
    "Continuation",
    "Example",
    "Feature",
    "ModelContext",
    "Prediction",
    "Scores",
    "Task",
    "build_task",
    "read_examples",
    "restore_task",
    "row_labels",
]

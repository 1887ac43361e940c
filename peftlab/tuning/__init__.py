"""The main flow: `tune()`, from a recipe to a published adapter."""

from peftlab.tuning.check import Checked, check
from peftlab.tuning.distributed.process_group import Processes
from peftlab.tuning.progress import Progress
from peftlab.tuning.tune import TuningResult, tune

__all__ = ["Checked", "Processes", "Progress", "TuningResult", "check", "tune"]

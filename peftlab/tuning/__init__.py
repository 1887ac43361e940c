"""The main flow: `tune()`, from a recipe to a published adapter."""

from peftlab.tuning.distributed import Processes
from peftlab.tuning.flow import TuningResult, tune
from peftlab.tuning.progress import Progress

__all__ = ["Processes", "Progress", "TuningResult", "tune"]

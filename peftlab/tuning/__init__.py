"""The main flow: `tune()`, from a recipe to a published adapter."""

from peftlab.tuning.checking import Checked, check
from peftlab.tuning.distributed import Processes
from peftlab.tuning.flow import TuningResult, tune
from peftlab.tuning.progress import Progress

__all__ = ["Checked", "Processes", "Progress", "TuningResult", "check", "tune"]

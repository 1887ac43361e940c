"""Tuning: `tune()`, from a recipe to a published adapter; `check()`, everything before training."""

from peftlab.tuning.check import CheckResult, check
from peftlab.tuning.distributed.process_group import ProcessGroup
from peftlab.tuning.progress import Progress
from peftlab.tuning.session import TuningSession
from peftlab.tuning.tune import TuningResult, tune

__all__ = ["CheckResult", "ProcessGroup", "Progress", "TuningResult", "TuningSession", "check", "tune"]

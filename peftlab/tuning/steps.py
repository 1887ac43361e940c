"""The steps of `tune()` that need torch, Transformers and PEFT, which take seconds to import.

A recipe with mistakes is reported without them: all steps are imported when the first one is called.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from peftlab.imports import heavy_imports

if TYPE_CHECKING:
    from peftlab.tuning.baselines.gate import check_baselines as check_baselines
    from peftlab.tuning.baselines.measure import measure_baselines as measure_baselines
    from peftlab.tuning.encoding import encode as encode
    from peftlab.tuning.evaluate import evaluate as evaluate
    from peftlab.tuning.probe import probe_base as probe_base
    from peftlab.tuning.probe import probe_run as probe_run
    from peftlab.tuning.publish import publish as publish
    from peftlab.tuning.schedule import choose_schedule as choose_schedule
    from peftlab.tuning.setup import add_adapter as add_adapter
    from peftlab.tuning.setup import load_base as load_base
    from peftlab.tuning.task_completion import complete_task as complete_task
    from peftlab.tuning.train import train as train

MODULES = {
    "complete_task": "task_completion",
    "load_base": "setup",
    "encode": "encoding",
    "probe_base": "probe",
    "probe_run": "probe",
    "choose_schedule": "schedule",
    "measure_baselines": "baselines.measure",
    "add_adapter": "setup",
    "train": "train",
    "evaluate": "evaluate",
    "check_baselines": "baselines.gate",
    "publish": "publish",
}


def __getattr__(name: str) -> Any:
    """Return a step by its name; the first call imports the modules of all steps."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with heavy_imports():
        modules = {step: import_module(f"peftlab.tuning.{module}") for step, module in MODULES.items()}
    return getattr(modules[name], name)

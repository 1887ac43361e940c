"""peftlab: one frozen base model, many small experts.

`peftlab.tune(recipe)` trains an adapter and publishes it to a store; `peftlab.load(name, …)` puts any number of them
beside one resident base and predicts; `peftlab.evaluate(name, data)` scores one on labelled rows, and
`peftlab.evaluate_mixed(data, by=…)` several at once.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftlab.runtime import evaluate, evaluate_mixed, load
    from peftlab.tuning.check import check
    from peftlab.tuning.tune import TuningResult, tune

__all__ = ["TuningResult", "__version__", "check", "evaluate", "evaluate_mixed", "load", "tune"]
__version__ = version("peftlab")

_HOMES = {
    "TuningResult": "peftlab.tuning",
    "check": "peftlab.tuning",
    "evaluate": "peftlab.runtime",
    "evaluate_mixed": "peftlab.runtime",
    "load": "peftlab.runtime",
    "tune": "peftlab.tuning",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: what it needs takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'peftlab' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)

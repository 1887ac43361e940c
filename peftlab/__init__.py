"""peftlab: one frozen base model, many small experts.

`peftlab.tune(recipe)` trains an adapter and publishes it to a store. `peftlab.load(name, …)` loads any number of
adapters beside one base and returns a `Bank`, which predicts. `peftlab.evaluate(name, data)` scores an adapter on
labelled rows; `peftlab.evaluate_mixed(data, by=…)` scores several at once. `peftlab.check(recipe)` does all that `tune`
does before it trains.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftlab.runtime import Bank, evaluate, evaluate_mixed, load
    from peftlab.tuning.check import check
    from peftlab.tuning.tune import TuningResult, tune

__all__ = ["Bank", "TuningResult", "__version__", "check", "evaluate", "evaluate_mixed", "load", "tune"]
__version__ = version("peftlab")

_MODULES = {
    "Bank": "peftlab.runtime",
    "TuningResult": "peftlab.tuning",
    "check": "peftlab.tuning",
    "evaluate": "peftlab.runtime",
    "evaluate_mixed": "peftlab.runtime",
    "load": "peftlab.runtime",
    "tune": "peftlab.tuning",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: torch, Transformers and PEFT take seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module 'peftlab' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)

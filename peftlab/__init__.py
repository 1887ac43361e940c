"""peftlab: one frozen base model, many small experts.

`peftlab.tune(recipe)` trains an adapter and publishes it to a store; `peftlab.load(name, …)` puts any number of them
beside one resident base and predicts.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftlab.runtime import load
    from peftlab.tuning import tune

__all__ = ["__version__", "load", "tune"]
__version__ = version("peftlab")

_HOMES = {"tune": "peftlab.tuning", "load": "peftlab.runtime"}


def __getattr__(name: str) -> Any:
    """Import the two verbs when they are first asked for: what they need takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'peftlab' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)

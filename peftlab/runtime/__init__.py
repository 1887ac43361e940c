"""The bank: adapters in memory beside one resident base; predictions, and scores on labelled rows."""

from peftlab.collector import heavy_imports

with heavy_imports():
    from peftlab.runtime.bank import Answer, Bank, load
    from peftlab.runtime.evaluating import Evaluation, evaluate

__all__ = ["Answer", "Bank", "Evaluation", "evaluate", "load"]

"""The bank: many adapters in memory on one shared base; evaluation on labelled rows."""

from peftlab.imports import heavy_imports

with heavy_imports():
    from peftlab.runtime.bank import Bank, load
    from peftlab.runtime.evaluation import Evaluation, MixedEvaluation, evaluate, evaluate_mixed
    from peftlab.runtime.request import Answer

__all__ = [
    "Answer",
    "Bank",
    "Evaluation",
    "MixedEvaluation",
    "evaluate",
    "evaluate_mixed",
    "load",
]

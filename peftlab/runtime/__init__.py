"""The bank: adapters in memory beside one resident base; predictions, scores on labelled rows, and merged models."""

from peftlab.collector import heavy_imports

with heavy_imports():
    from peftlab.runtime.bank import Answer, Bank, load
    from peftlab.runtime.evaluating import Evaluation, MixedEvaluation, evaluate, evaluate_mixed
    from peftlab.runtime.exporting import Merged, merge

__all__ = ["Answer", "Bank", "Evaluation", "Merged", "MixedEvaluation", "evaluate", "evaluate_mixed", "load", "merge"]

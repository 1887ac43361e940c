"""The bank: adapters in memory beside one resident base; scores on labelled rows; adapters from and to elsewhere."""

from peftlab.imports import heavy_imports

with heavy_imports():
    from peftlab.runtime.bank import Bank, load
    from peftlab.runtime.evaluating import Evaluation, MixedEvaluation, evaluate, evaluate_mixed
    from peftlab.runtime.exporting import Merged, merge
    from peftlab.runtime.importing import Imported, import_adapter
    from peftlab.runtime.request import Answer

__all__ = [
    "Answer",
    "Bank",
    "Evaluation",
    "Imported",
    "Merged",
    "MixedEvaluation",
    "evaluate",
    "evaluate_mixed",
    "import_adapter",
    "load",
    "merge",
]

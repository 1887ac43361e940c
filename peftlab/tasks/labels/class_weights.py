"""The weight of each class in the loss: balanced, or numbers by name from the recipe."""

from collections.abc import Mapping, Sequence

from peftlab.errors import ErrorCollector, suggest

ClassWeights = str | Mapping[str, float] | None
"""`balanced`, a weight by class name, or no weights."""


def fit_class_weights(
    class_weights: ClassWeights, counts: Mapping[str, int], labels: Sequence[str], errors: ErrorCollector
) -> list[float] | None:
    """The weight of each label, or None without weights.

    `balanced` is scikit-learn's: the number of training targets / (labels × targets with this label). Labels that a
    mapping does not name have weight 1; names that are no labels are errors.
    """
    if isinstance(class_weights, Mapping):
        return _weights_by_name(class_weights, labels, errors)
    if not class_weights:
        return None
    total = sum(counts.values())
    return [total / (len(labels) * max(1, counts.get(label, 0))) for label in labels]


def _weights_by_name(weights: Mapping[str, float], labels: Sequence[str], errors: ErrorCollector) -> list[float]:
    for name in weights:
        if labels and name not in labels:
            hint = suggest(name, labels, what="Available labels")
            errors.add(f"there is no label '{name}'.", key="task.class_weights", hint=hint)
    return [weights.get(label, 1.0) for label in labels]

"""The best *well-formed* tag sequence: Viterbi's algorithm (1967) over what IOB2 allows.

The best tag of each word alone may give sequences that IOB2 forbids (I-PER after O), which readers then take for
entities of their own. Among the sequences it allows, this picks the one of the highest total probability.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

from peftlab.imports import torch

if TYPE_CHECKING:
    from torch import Tensor

FORBIDDEN = -1e9


def best_tags(log_probabilities: "Tensor", names: list[str]) -> list[int]:
    """Class of each word.

    Args:
        log_probabilities: (words, classes), on the CPU.
        names: IOB2 tag of each class.
    """
    if not len(log_probabilities):
        return []
    step = _transitions(tuple(names))
    best, came_from = log_probabilities[0] + step[names.index("O")], []
    for word in log_probabilities[1:]:
        total, before = (best[:, None] + step).max(0)
        came_from.append(before)
        best = total + word
    path = [int(best.argmax())]
    for before in reversed(came_from):
        path.append(int(before[path[-1]]))
    return path[::-1]


@lru_cache
def _transitions(names: tuple[str, ...]) -> "Tensor":
    """(classes, classes): 0 where the second may follow the first."""
    return torch.tensor([[0.0 if _may_follow(after, before) else FORBIDDEN for after in names] for before in names])


def _may_follow(tag: str, before: str) -> bool:
    """I-X only goes on with an X."""
    return not tag.startswith("I-") or before in (f"B-{tag[2:]}", tag)

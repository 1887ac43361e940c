"""How SQuAD's official script counts answers (Rajpurkar et al. 2018), as shares of 1."""

import re
import string
from collections import Counter
from collections.abc import Sequence


def normalized(text: str) -> str:
    """Lower case, without punctuation and articles, single blanks: SQuAD's `normalize_answer`."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """1 if the answer is one of the accepted ones (no answer, if there is none), else 0."""
    return float(normalized(answer) in _that_count(accepted))


def f1(answer: str, accepted: Sequence[str]) -> float:
    """The best F1 over words with any of the accepted answers."""
    return max(_word_f1(normalized(answer).split(), gold.split()) for gold in _that_count(accepted))


def _that_count(accepted: Sequence[str]) -> list[str]:
    """Accepted answers, normalized, without those of which nothing is left; no answer at all is an empty one."""
    return [gold for gold in map(normalized, accepted) if gold] or [""]


def _word_f1(prediction: list[str], gold: list[str]) -> float:
    if not (prediction and gold):
        return float(prediction == gold)
    shared = sum((Counter(prediction) & Counter(gold)).values())
    return 2 * shared / (len(prediction) + len(gold))


def best_threshold(gaps: Sequence[float], gains: Sequence[float]) -> float:
    """The null threshold at which most is won: each answer whose gap does not exceed it is given, and brings its gain.

    Halfway between two gaps, as `find_best_thresh` sweeps them in order.
    """
    in_order = sorted(zip(gaps, gains, strict=True))
    threshold = in_order[0][0] - 1.0
    won = most = 0.0
    for i, (gap, gain) in enumerate(in_order):
        won += gain
        after = in_order[i + 1][0] if i + 1 < len(in_order) else gap + 1.0
        if won > most and after > gap:
            most, threshold = won, (gap + after) / 2
    return threshold

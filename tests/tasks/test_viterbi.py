from itertools import product

import pytest
import torch

from peftlab.tasks.labels.tag_schemes import spans_from_tags
from peftlab.tasks.labels.viterbi import best_tags

NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def is_valid_iob2(tags):
    try:
        spans_from_tags(tags, "iob2")
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("seed", range(20))
def test_best_tags_match_full_search(seed):
    """The oracle: try every sequence."""
    probabilities = torch.randn(4, len(NAMES), generator=torch.Generator().manual_seed(seed)).log_softmax(-1)
    allowed = [path for path in product(range(5), repeat=4) if is_valid_iob2([NAMES[i] for i in path])]
    best = max(allowed, key=lambda path: sum(float(probabilities[word, i]) for word, i in enumerate(path)))
    assert best_tags(probabilities, NAMES) == list(best)


def test_valid_tags_are_preserved():
    wanted = [0, 1, 2, 2, 3, 4, 1, 0]
    probabilities = torch.full((len(wanted), 5), -5.0)
    probabilities[range(len(wanted)), wanted] = -0.1
    assert best_tags(probabilities, NAMES) == wanted


def test_empty_input_has_no_tags():
    assert best_tags(torch.empty(0, 5), NAMES) == []

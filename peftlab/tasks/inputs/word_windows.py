"""Windows of words: a text that is longer than the model's input is read in overlapping parts."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OVERLAP = 0.25  # share of a window that the next one repeats, so that every word is once away from an edge


def windows_of_words(
    tokens: Sequence[list[str]], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[list[tuple[int, int]]]:
    """(first word, end) of the windows that cover each text; none for a text without words."""
    windows = [one_window(words) for words in tokens]
    filled = [number for number, words in enumerate(tokens) if words]
    if not filled:
        return windows
    budget = max_length - tokenizer.num_special_tokens_to_add()
    encoded = tokenizer([tokens[number] for number in filled], is_split_into_words=True, verbose=False)
    for i, number in enumerate(filled):
        if len(encoded["input_ids"][i]) > max_length:
            chunks = Counter(word for word in encoded.word_ids(i) if word is not None)
            sizes = [chunks[word] for word in range(len(tokens[number]))]
            windows[number] = split_into_windows(sizes, budget, int(budget * OVERLAP))
    return windows


def one_window(words: list[str]) -> list[tuple[int, int]]:
    """All words as one window; none without words."""
    return [(0, len(words))] if words else []


def split_into_windows(sizes: Sequence[int], budget: int, overlap: int) -> list[tuple[int, int]]:
    """Cut words of so many tokens each into overlapping windows of at most `budget` tokens: (first word, end).

    A word wider than `budget` gets a window of its own. No word is left out.
    """
    windows: list[tuple[int, int]] = []
    start = 0
    while True:
        end, used = start, 0
        while end < len(sizes) and (used + sizes[end] <= budget or end == start):
            used += sizes[end]
            end += 1
        windows.append((start, end))
        if end == len(sizes):
            return windows
        back, repeated = end, 0
        fits = min(overlap, budget - sizes[end])  # the window must reach a new word
        while back - 1 > start and repeated + sizes[back - 1] <= fits:
            back -= 1
            repeated += sizes[back]
        start = back

"""Masks by BERT's rule (Devlin et al. 2019, arXiv:1810.04805), drawn by a chance that hangs on a text alone."""

from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from peftlab.tasks.inputs.features import IGNORED, Feature

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASKED, REPLACED = 0.8, 0.1
"""Of the chosen tokens: shares that become the mask token, and any other word of the vocabulary; the rest stays."""


class TokenMasker:
    """How inputs of a tokenizer are masked: `share` of their tokens is to be found, special ones never."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", share: float) -> None:
        self._mask, self._share = tokenizer.mask_token_id, share
        self._special = set(tokenizer.all_special_ids)
        self._words = sorted(set(tokenizer.get_vocab().values()) - self._special)

    def masked(self, inputs: Mapping[str, list[int]], seed: str) -> Feature:
        """The inputs with some tokens masked, and labels that tell what these were; the same by the same `seed`.

        At least one token is, if any can be.
        """
        tokens, random = inputs["input_ids"], Random(seed)
        places = [i for i, token in enumerate(tokens) if token not in self._special]
        chosen = random.sample(places, min(len(places), max(1, round(self._share * len(places)))))
        quoted, labels = list(tokens), [IGNORED] * len(tokens)
        for i in chosen:
            quoted[i], labels[i] = self._replacement(tokens[i], random), tokens[i]
        return Feature({**inputs, "input_ids": quoted}, labels)

    def resample(self, feature: Feature, seed: str) -> Feature:
        """The same text under other masks."""
        pairs = zip(feature.inputs["input_ids"], feature.labels, strict=True)
        tokens = [quoted if label == IGNORED else label for quoted, label in pairs]
        drawn = self.masked({**feature.inputs, "input_ids": tokens}, seed)
        return replace(feature, inputs=drawn.inputs, labels=drawn.labels)

    def _replacement(self, token: int, random: Random) -> int:
        drawn = random.random()
        if drawn < MASKED:
            return int(self._mask)
        return random.choice(self._words) if drawn < MASKED + REPLACED else token

"""Overlap of generated texts with references: BLEU and chrF by sacreBLEU, ROUGE by rouge-score."""

import logging
from collections.abc import Sequence
from functools import cache
from statistics import fmean
from typing import Any

import regex

from peftlab.imports import rouge_scorer, sacrebleu_metrics
from peftlab.tasks.task import Scores

References = Sequence[Sequence[str]]
"""What may be written, for each row one text or several."""
ROUGES = ("rouge1", "rouge2", "rougeL")
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(rf"(?V1)[{_UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--[{_UNSPACED}]]+")


def bleu_and_chrf(written: Sequence[str], references: References, tokenize: str) -> Scores:
    """`bleu` (Papineni et al. 2002) and `chrf` (Popović 2015) of a corpus, 0 to 100, with sacreBLEU's signatures.

    `tokenize` is sacreBLEU's name of how BLEU splits texts into words; see Post (2018, arXiv:1804.08771).
    """
    logging.getLogger("sacrebleu").setLevel(logging.ERROR)  # it warns of text that looks tokenized; ours is as it came
    streams = _streams(references)
    scores, signatures = {}, {}
    for name, metric in (("bleu", sacrebleu_metrics.BLEU(tokenize=tokenize)), ("chrf", sacrebleu_metrics.CHRF())):
        scores[name] = float(metric.corpus_score(list(written), streams).score) if written else 0.0
        signatures[name] = str(metric.get_signature()) if written else ""
    return Scores(scores, signatures=signatures)


def _streams(references: References) -> Any:
    """A row's first references, then their second ones, and so on; None where a row has no more."""
    most = max(map(len, references), default=0)
    return [[row[i] if i < len(row) else None for row in references] for i in range(most)]


def rouge(written: Sequence[str], references: References, tokenize: str) -> Scores:
    """F1 of `rouge1`, `rouge2` and `rougeL` (Lin 2004), 0 to 1: the mean over rows, each with its best reference.

    `tokenize` is unicode (words of any script, characters where words are not set apart; case does not matter), or
    rouge-score, which splits as that package does, at whatever is not a Latin letter without accents or a digit.
    """
    scorer = _scorer(tokenize)
    scored = [scorer.score_multi(list(row), text) for row, text in zip(references, written, strict=True)]
    values = {name: fmean(row[name].fmeasure for row in scored) if scored else 0.0 for name in ROUGES}
    return Scores(values, signatures={"rouge": f"package:rouge-score|stemmer:no|tok:{tokenize}|refs:best"})


@cache
def _scorer(tokenize: str) -> Any:
    return rouge_scorer.RougeScorer(list(ROUGES), tokenizer=_Words() if tokenize == "unicode" else None)


class _Words:
    """What rouge-score asks of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        """The words of a text in lower case."""
        return _WORD.findall(text.lower())

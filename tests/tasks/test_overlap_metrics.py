"""BLEU and chrF against sacreBLEU's own command, ROUGE against rouge-score; on real data where it is there."""

import gzip
import json
import random
import subprocess
import sys

import pytest
from rouge_score.rouge_scorer import RougeScorer

from peftlab.tasks.metrics.overlap import _WORD, bleu_and_chrf, rouge
from tests.conftest import shared_data

REFERENCES = ["der Zug war alt", "es regnete in Rom", "Ada schrieb den Brief", "niemand kam"]
WRITTEN = ["der Zug war neu", "es regnete in Rom", "Ada schrieb", "jemand kam nicht"]


def sacrebleu_output(tmp_path, written, references, *options):
    """What `sacrebleu` prints of a file."""
    (tmp_path / "written.txt").write_text("".join(f"{line}\n" for line in written), encoding="utf8")
    (tmp_path / "references.txt").write_text("".join(f"{line}\n" for line in references), encoding="utf8")
    command = [sys.executable, "-m", "sacrebleu", str(tmp_path / "references.txt"), "-i", str(tmp_path / "written.txt")]
    said = subprocess.run([*command, "-w", "6", *options], capture_output=True, text=True, check=True).stdout
    return {one["name"].lower().rstrip("2"): one for one in json.loads(said)}


def add_noise(sentences, seed=0):
    """Sentences as a middling translator might write them: words left out, doubled and swapped."""
    dice, made = random.Random(seed), []
    for sentence in sentences:
        words = [word for word in sentence.split() for _ in range(dice.choice((0, 1, 1, 1, 1, 1, 2)))]
        if len(words) > 2 and dice.random() < 0.5:
            at = dice.randrange(len(words) - 1)
            words[at : at + 2] = reversed(words[at : at + 2])
        made.append(" ".join(words))
    return made


def assert_matches_sacrebleu(tmp_path, written, references, tokenize="13a"):
    told = sacrebleu_output(tmp_path, written, references, "-m", "bleu", "chrf", "-tok", tokenize)
    scores = bleu_and_chrf(written, [[line] for line in references], tokenize)
    for name in ("bleu", "chrf"):
        assert scores.values[name] == pytest.approx(told[name]["score"], abs=1e-6)
        assert scores.signatures[name] == told[name]["signature"]
    assert scores.values["bleu"] > 5


@pytest.mark.parametrize("tokenize", ["13a", "intl", "zh", "char", "none"])
def test_bleu_and_chrf_match_sacrebleu(tmp_path, tokenize):
    assert_matches_sacrebleu(tmp_path, WRITTEN, REFERENCES, tokenize)


@pytest.mark.parametrize("language", ["de", "fr", "cs"])
def test_multi30k_scores_match_sacrebleu(tmp_path, language):
    with gzip.open(shared_data("mt_multi30k") / f"raw/test_2016_flickr.{language}.gz", "rt", encoding="utf8") as lines:
        references = [line.rstrip("\n") for line in lines]
    assert_matches_sacrebleu(tmp_path, add_noise(references), references)


def test_variable_number_of_references():
    several = [[REFERENCES[0], WRITTEN[0]], *([line] for line in REFERENCES[1:])]
    assert (
        bleu_and_chrf(WRITTEN, several, "13a").values["bleu"]
        > bleu_and_chrf(WRITTEN, [[line] for line in REFERENCES], "13a").values["bleu"]
    )


def load_summary_rows():
    """Abstracts' sentences and the references of SciTLDR's test split."""
    file = shared_data("sum_scitldr") / "SciTLDR-A/test.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf8").splitlines()]
    return [row["source"][0] for row in rows], [row["target"] for row in rows]


def test_rouge_matches_rouge_score():
    written, references = load_summary_rows()
    assert max(map(len, references)) > 1
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    told = [scorer.score_multi(row, text) for row, text in zip(references, written, strict=True)]
    plain = rouge(written, references, "rouge-score").values
    for name, value in plain.items():
        assert value == pytest.approx(sum(row[name].fmeasure for row in told) / len(told), abs=1e-12)
    for name, value in rouge(written, references, "unicode").values.items():
        assert value == pytest.approx(plain[name], abs=2e-3)  # but for letters with accents


def test_rouge_supports_unicode_text():
    for text in ("它今天下雨了", "шёл дождь весь день", "आज बारिश हुई थी", "วันนี้ฝนตก", "雨が降った"):
        assert rouge([text], [[text]], "unicode").values == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}
        assert rouge([text], [[text]], "rouge-score").values["rouge1"] == 0.0
    assert _WORD.findall("naïve 东京2020, हिन्दी x_y") == ["naïve", "东", "京", "2020", "हिन्दी", "x", "y"]


def test_empty_input_scores_zero():
    assert set(bleu_and_chrf([], [], "13a").values.values()) == {0.0}
    assert set(rouge([], [], "unicode").values.values()) == {0.0}

"""Evaluating files with rows that are left out on request, or one word a row, and rows of several adapters."""

import json

import pytest
from click.testing import CliRunner

from peftlab.cli import cli
from peftlab.errors import RecipeError
from peftlab.runtime import evaluate, evaluate_mixed
from tests.task_stores import recipe_for
from tests.untrained import publish_untrained


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_base):
    """Untrained adapters: `films` and `meals` (bad, fair, good), `people` (LOC, PER)."""
    folder = tmp_path_factory.mktemp("left-out")
    for name, kind in (("films", "classes"), ("meals", "classes"), ("people", "entities")):
        publish_untrained(folder / "store", recipe_for(folder / name, tiny_base, kind), {"name": name})
    return folder / "store"


def write(folder, rows, name="rows.jsonl"):
    (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf8")
    return folder / name


ROWS = [{"text": f"it rained {n} .", "label": ["good", "bad"][n % 2]} for n in range(6)]


@pytest.mark.parametrize(
    "odd",
    [
        {"text": "", "label": "bad"},
        {"text": "x", "label": None},
        {"text": "x", "label": "-"},
        {"text": None, "label": "bad"},
    ],
)
def test_blank_rows_are_refused_or_left_out(store, tmp_path, odd):
    file = write(tmp_path, [*ROWS[:3], odd, *ROWS[3:], odd])
    with pytest.raises(RecipeError, match="--drop-blank"):
        evaluate("films", file, store=store, device="cpu")
    result = evaluate("films", file, drop_blank=True, store=store, device="cpu")
    assert (result.ledger.used, sum(result.ledger.dropped.values())) == (6, 2)
    assert [prediction.text for prediction in result.predictions] == [row["text"] for row in ROWS]
    assert result.scores == evaluate("films", write(tmp_path, ROWS, "good.jsonl"), store=store, device="cpu").scores
    command = ["evaluate", "films", "--data", str(file), "--drop-blank", "--store", str(store)]
    assert "2 × without text or label" in CliRunner().invoke(cli, command).output


@pytest.mark.parametrize("odd", [{"text": " ", "label": "good"}, {"text": "y", "label": "-1"}])
def test_rows_of_several_adapters_keep_their_order(store, tmp_path, odd):
    rows = [{**row, "adapter": ["films", "meals"][n // 2 % 2]} for n, row in enumerate(ROWS)]
    mixed = [rows[0], {**odd, "adapter": "films"}, *rows[1:4], {**odd, "adapter": "meals"}, *rows[4:]]
    file = write(tmp_path, mixed)
    result = evaluate_mixed(file, by="adapter", drop_blank=True, store=store, device="cpu")
    assert [(answer.adapter, answer.prediction.text) for answer in result.answers] == [
        (row["adapter"], row["text"]) for row in rows
    ]
    assert sum(evaluation.ledger.used for evaluation in result.by_adapter.values()) == 6


@pytest.mark.parametrize("answer", ["reject", "ignore"])
def test_rejected_rows_are_not_scored(store, tmp_path, answer):
    rows = [{**row, "answer": "accept", "_input_hash": 1} for row in ROWS]
    result = evaluate("films", write(tmp_path, [{**rows[0], "answer": answer}, *rows]), store=store, device="cpu")
    assert result.ledger.used == 6
    assert [count for warning, count in result.ledger.warnings.items() if "Prodigy" in warning] == [1]


WORDS = "n,tokens,tags\n1,Ada,B-PER\n,left,O\n,Rome,B-LOC\n2,it,O\n,rained,O\n"


def test_words_are_grouped_by_sentence(store, tmp_path):
    (tmp_path / "words.csv").write_text(WORDS)
    with pytest.raises(RecipeError, match="every row holds one word"):
        evaluate("people", tmp_path / "words.csv", store=store, device="cpu")
    result = evaluate("people", tmp_path / "words.csv", group_by="n", store=store, device="cpu")
    assert [prediction.text for prediction in result.predictions] == ["Ada left Rome", "it rained"]
    shared = ["--store", str(store), "--group-by", "n"]
    scored = CliRunner().invoke(cli, ["evaluate", "people", "--data", str(tmp_path / "words.csv"), "--json", *shared])
    assert json.loads(scored.stdout)["rows"] == 2
    file = ["--file", str(tmp_path / "words.csv")]
    predicted = CliRunner().invoke(cli, ["predict", "people", *file, "--json", *shared])
    assert [json.loads(line)["text"] for line in predicted.stdout.splitlines()] == ["Ada left Rome", "it rained"]
    refused = CliRunner().invoke(cli, ["predict", "people", "Ada left", *shared])
    assert "--group-by needs rows with columns" in refused.output

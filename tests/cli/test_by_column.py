"""`--by`: every row names its adapter in a column; predictions and scores of shuffled rows."""

import csv
import json
import os
import pty
import random
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

import peftlab
from peftlab.errors import ErrorCollector, IntegrityError, MemoryBudgetError, RecipeError
from peftlab.runtime import bank as banking
from peftlab.runtime import request as requests
from peftlab.store import Store
from peftlab.tasks.inputs.rows import read_input_rows
from peftlab.tuning import tune
from tests.conftest import build_tiny_bert
from tests.task_stores import KINDS, one_line, recipe_for, run, task_store, to_json_lines  # noqa: F401  # a fixture

OPTIONS = ("--device", "cpu")


def make_rows(kinds=KINDS, *, by="expert", count=8, names=lambda kind: kind):
    """Make rows of several kinds with the names of their adapters, in a fixed random order."""
    rows = [{by: names(kind), **row} for kind in kinds for row in KINDS[kind][1][:count]]
    return random.Random(5).sample(rows, len(rows))


def without_adapter(row):
    return {name: value for name, value in row.items() if name != "expert"}


def write_rows(folder, rows, name="rows.jsonl"):
    (folder / name).write_text(rows if isinstance(rows, str) else to_json_lines(rows), encoding="utf8")
    return folder / name


@pytest.fixture
def predict(task_store):  # noqa: F811
    def predict(*arguments):
        return run("predict", *arguments, "--store", task_store, *OPTIONS)

    return predict


@pytest.fixture
def evaluate(task_store):  # noqa: F811
    def evaluate(*arguments):
        return run("evaluate", *arguments, "--store", task_store, *OPTIONS)

    return evaluate


@pytest.fixture
def get_errors(predict, evaluate, tmp_path):
    """Return the errors of both commands for invalid rows, as one line each, without the folder."""

    def get_errors(rows, *options):
        output = []
        for command, option in ((predict, "--file"), (evaluate, "--data")):
            result = command("--by", "expert", option, write_rows(tmp_path, rows), *options)
            assert (result.exit_code, result.stdout) == (2, "")
            output.append(one_line(result.stderr).replace(f"{tmp_path}/", ""))
        return output

    return get_errors


def parse_json_lines(result):
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def almost_equal(one, other):
    """Compare two JSON values up to the rounding differences of other batches."""
    if isinstance(one, dict) and isinstance(other, dict):
        return set(one) == set(other) and all(almost_equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(almost_equal, one, other))
    return one == (pytest.approx(other, abs=2e-4) if isinstance(other, float) else other)


# --- answers


def test_by_column_predicts_each_row_in_order(predict, tmp_path):
    rows = make_rows()
    output = parse_json_lines(predict("--by", "expert", "--file", write_rows(tmp_path, rows), "--json"))
    assert [answer["adapter"] for answer in output] == [row["expert"] for row in rows]
    for kind in KINDS:
        own_rows = [without_adapter(row) for row in rows if row["expert"] == kind]
        alone = parse_json_lines(predict(kind, "--file", write_rows(tmp_path, own_rows), "--json"))
        assert almost_equal([answer for answer in output if answer["adapter"] == kind], alone)


def test_command_matches_stream(predict, task_store, tmp_path):  # noqa: F811
    rows = make_rows(["classes", "topics", "answers"])
    output = parse_json_lines(predict("--by", "expert", "--file", write_rows(tmp_path, rows), "--json"))
    bank = peftlab.load("classes", "topics", "answers", store=task_store, device="cpu")
    progress = []
    answers = bank.stream([(row["expert"], row) for row in rows], on_progress=progress.append)
    assert [answer.as_dict() for answer in answers] == output
    assert progress == sorted(progress)
    assert progress[-1] == len(rows)


def test_adapter_column_accepts_versions_and_whitespace(predict, tmp_path):
    rows = [{"expert": name, "text": "it rained ."} for name in ("classes@1", "classes", " topics ")]
    output = parse_json_lines(predict("--by", "expert", "--file", write_rows(tmp_path, rows), "--json"))
    assert [answer["adapter"] for answer in output] == ["classes@1", "classes", "topics"]
    assert {**output[0], "adapter": ""} == {**output[1], "adapter": ""}


def test_by_column_prints_adapter_and_prediction(predict, tmp_path):
    rows = make_rows(["classes", "entities"])
    shown = predict("--by", "expert", "--file", write_rows(tmp_path, rows)).stdout.splitlines()
    firsts = [line for line in shown if not line.startswith("  ")]
    assert [line.split()[0] for line in firsts] == [row["expert"] for row in rows]
    assert {line.index(line.split()[1]) for line in firsts} == {len("entities") + 2}


def test_conll_output_by_column(predict, tmp_path):
    rows = make_rows(["entities", "characters"], count=3)
    printed = predict("--by", "expert", "--file", write_rows(tmp_path, rows), "--conll", "iob2")
    texts = [list(lines) for full, lines in groupby(printed.stdout.splitlines(), bool) if full]
    words = [[line.split("\t")[0] for line in lines] for lines in texts]
    assert words == [row["tokens"] for row in rows]
    mixed = predict(
        "--by", "expert", "--file", write_rows(tmp_path, make_rows(["entities", "classes"])), "--conll", "iob2"
    )
    assert (mixed.exit_code, mixed.stdout) == (2, "")
    assert "classes predicts no tags" in one_line(mixed.output)


def test_context_applies_to_all_rows_or_fails(predict, tmp_path):
    rows = [{"expert": "answers", "question": "who wrote ?"}, {"expert": "rating", "text": "it rained ."}]
    output = parse_json_lines(
        predict("--by", "expert", "--file", write_rows(tmp_path, rows), "--context", "Ada wrote .", "--json")
    )
    assert (output[0]["context"], output[1]["text_pair"]) == ("Ada wrote .", "Ada wrote .")
    rows.append({"expert": "entities", "text": "x"})
    result = predict("--by", "expert", "--file", write_rows(tmp_path, rows), "--context", "Ada wrote .")
    assert (result.exit_code, "--context is not an input of entities" in one_line(result.output)) == (2, True)


@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_empty_cells_are_columns_of_other_adapters(predict, evaluate, tmp_path, form):
    """An empty cell is not an input: only filled columns belong to the adapter of a row."""
    rows = make_rows(["classes", "topics", "rating", "entities", "answers"])
    file = tmp_path / f"rows.{form}"
    with file.open("w", encoding="utf8", newline="") as opened:
        plain = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None} if form == "tsv" else {}
        writer = csv.DictWriter(opened, list(dict.fromkeys(name for row in rows for name in row)), **plain)
        writer.writeheader()
        writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    as_lines = write_rows(tmp_path, rows)
    assert parse_json_lines(predict("--by", "expert", "--file", file, "--json")) == parse_json_lines(
        predict("--by", "expert", "--file", as_lines, "--json")
    )
    scores = [parse_json_lines(evaluate("--by", "expert", "--data", data, "--json"))[0] for data in (file, as_lines)]
    assert [output["scores"] for output in scores[0].values()] == [output["scores"] for output in scores[1].values()]


def test_parquet_null_values_are_columns_of_other_adapters(predict, tmp_path):
    from datasets import Dataset

    rows = make_rows(["classes", "rating", "answers"], count=3)
    columns = ("expert", "text", "text_pair", "question", "context")
    table = Dataset.from_list([{name: row.get(name) for name in columns} for row in rows])
    table.to_parquet(tmp_path / "rows.parquet")
    expected = parse_json_lines(predict("--by", "expert", "--file", write_rows(tmp_path, rows), "--json"))
    assert parse_json_lines(predict("--by", "expert", "--file", tmp_path / "rows.parquet", "--json")) == expected


def test_empty_text_is_predicted(predict, tmp_path):
    rows = [{"expert": "classes", "text": ""}, {"expert": "answers", "question": "", "context": ""}]
    output = parse_json_lines(predict("--by", "expert", "--file", write_rows(tmp_path, rows), "--json"))
    assert [output[0]["text"], output[1]["context"]] == ["", ""]


def test_column_option_maps_adapter_column(predict, tmp_path):
    rows = [{"who": "classes", "review": "it rained ."}, {"who": "answers", "question": "who ?", "context": "Ada ."}]
    output = parse_json_lines(
        predict("--by", "who", "--file", write_rows(tmp_path, rows), "--column", "text=review", "--json")
    )
    assert [output[0]["text"], output[1]["question"]] == ["it rained .", "who ?"]


# --- rows that cannot be asked


def test_unknown_adapter_is_reported_once_with_first_row(get_errors):
    texts = [("clases", "a"), ("classes", "b"), ("clases", "c"), ("Topics!", "d"), ("topics@7", "e")]
    for output in get_errors([{"expert": name, "text": text, "label": "good", "labels": []} for name, text in texts]):
        assert "3 problems; nothing was started." in output
        assert "rows.jsonl:1 no adapter 'clases' in " in output
        assert "Did you mean 'classes'? Available: answers, characters" in output
        assert "2 rows name it; this is the first." in output
        assert "rows.jsonl:4 'Topics!' cannot be an adapter's name" in output
        assert "rows.jsonl:5 no version '7' of 'topics'" in output


def test_missing_and_unknown_adapters_are_reported_together(get_errors):
    good = {"expert": "classes", "text": "x", "label": "good"}
    rows = [good, {"exprt": "classes", "text": "x"}, *({**good, "expert": name} for name in (3, " ", "no"))]
    for output in get_errors(to_json_lines(rows) + "{\n" + to_json_lines([{"expert": "answers", "text": "x"}])):
        assert "6 problems; nothing was started." in output
        assert (
            "rows.jsonl:2 no column 'expert', which should name the adapter of the row. Did you mean 'exprt" in output
        )
        assert "rows.jsonl:3 expected expert to name an adapter, found 3" in output
        assert "rows.jsonl:4 expected expert to name an adapter, found ' '" in output
        assert "rows.jsonl:5 no adapter 'no' in" in output
        assert "rows.jsonl:6 expected one JSON object on this line" in output
        assert "rows.jsonl:7 answers expected columns question and context" in output


def test_missing_column_is_reported_once(get_errors):
    for output in get_errors([{"text": "x", "label": "good"}] * 9):
        assert output.startswith("1 problem;")
        assert "rows.jsonl:1 and every other row no column 'expert', which should name the adapter" in output
        assert "Available columns: label, text." in output


def test_first_of_many_rows_without_adapter_are_reported(get_errors):
    for output in get_errors(
        [*({"text": f"{n}"} for n in range(9)), {"expert": "classes", "text": "x", "label": "good"}]
    ):
        assert "rows.jsonl:5 no column" in output
        assert "rows.jsonl:6" not in output
        assert "… and 4 more rows like these." in output


def test_unreadable_files_fail(predict, get_errors, tmp_path):
    assert all("rows.jsonl holds no rows." in output for output in get_errors(""))
    assert all("no column 'txt' in" in output for output in get_errors(make_rows(), "--column", "text=txt"))
    absent = predict("--by", "expert", "--file", tmp_path / "row.jsonl")
    assert (absent.exit_code, "Did you mean 'rows.jsonl'?" in absent.output) == (2, True)


def test_corrupt_adapter_raises_integrity_error(task_store, tmp_path):  # noqa: F811
    store = Path(shutil.copytree(task_store, tmp_path / "store"))
    (store / "topics" / "1" / "README.md").write_text("other")
    file = write_rows(tmp_path, make_rows(["classes", "topics"]))
    for command, option in (("predict", "--file"), ("evaluate", "--data")):
        result = run(command, "--by", "expert", option, file, "--store", store, *OPTIONS)
        assert (result.exit_code, "README.md: changed" in result.output) == (4, True)


def test_adapter_of_other_base_raises_integrity_error(task_store, tmp_path):  # noqa: F811
    store = Path(shutil.copytree(task_store, tmp_path / "store"))
    other = build_tiny_bert(tmp_path / "other", seed=9)
    tune(recipe_for(tmp_path / "data", other, "classes"), store=store, overrides={"name": "stranger"})
    rows = [{"expert": name, "text": "x", "label": "good"} for name in ("classes", "stranger")]
    with pytest.raises(IntegrityError, match="stranger@1"):
        peftlab.evaluate_mixed(write_rows(tmp_path, rows), by="expert", store=store, device="cpu")


# --- options that do not go together


@pytest.mark.parametrize(
    ("arguments", "expected_text"),
    [
        (["classes", "--by", "expert", "--file", "rows.jsonl"], "omit 'classes', or omit --by"),
        (["--by", "expert"], "--by needs rows with columns: give a .jsonl"),
        (["--by", "expert", "--file", "rows.txt"], "--by needs rows with columns: give a .jsonl"),
        ([], "name an ADAPTER, or give --by COLUMN"),
        (["classes", "x", "--column", "text=review"], "--column needs rows with columns"),
        (["classes", "--file", "rows.txt", "--column", "text=review"], "--column needs rows with columns"),
        (["classes", "x", "--format", "csv"], "--format needs rows with columns"),
        (["entities", "x", "--json", "--conll", "iob2"], "--conll and --json exclude each other"),
    ],
)
def test_predict_rejects_options_without_effect(predict, arguments, expected_text):
    result = predict(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected_text in one_line(result.output)


@pytest.mark.parametrize(
    ("arguments", "expected_text"),
    [
        (["classes", "--by", "expert", "--data", "rows.jsonl"], "omit 'classes', or omit --by"),
        (["--data", "rows.jsonl"], "name an ADAPTER, or give --by COLUMN"),
        (["--by", "expert"], "Missing option '--data'"),
    ],
)
def test_evaluate_rejects_options_without_effect(evaluate, arguments, expected_text):
    result = evaluate(*arguments)
    assert (result.exit_code, expected_text in one_line(result.output)) == (2, True)


# --- scores


def test_mixed_scores_match_single_adapter_scores(task_store, tmp_path):  # noqa: F811
    rows = make_rows()
    progress = []
    result = peftlab.evaluate_mixed(
        write_rows(tmp_path, rows),
        by="expert",
        store=task_store,
        device="cpu",
        on_progress=lambda done, total: progress.append((done, total)),
    )
    assert list(result.by_adapter) == list(dict.fromkeys(row["expert"] for row in rows))
    assert [answer.adapter for answer in result.answers] == [row["expert"] for row in rows]
    assert progress[-1] == (len(rows), len(rows))
    for kind, evaluation in result.by_adapter.items():
        file = write_rows(tmp_path, [row for row in rows if row["expert"] == kind], f"{kind}.jsonl")
        alone = peftlab.evaluate(kind, file, store=task_store, device="cpu")
        assert almost_equal(evaluation.scores.as_dict(), alone.scores.as_dict())
        warnings = {**evaluation.ledger.warnings, "column not read: expert": 8}  # without `by` it is like any other
        assert {**vars(evaluation.ledger), "source": "", "warnings": warnings} == {**vars(alone.ledger), "source": ""}
        assert almost_equal([p.as_dict() for p in evaluation.predictions], [p.as_dict() for p in alone.predictions])
        assert (evaluation.adapter, evaluation.task.type) == (alone.adapter, alone.task.type)
        assert [answer.prediction for answer in result.answers if answer.adapter == kind] == evaluation.predictions


def test_evaluate_prints_one_line_per_adapter(evaluate, task_store, tmp_path):  # noqa: F811
    rows = make_rows()
    file = write_rows(tmp_path, rows)
    output = parse_json_lines(evaluate("--by", "expert", "--data", file, "--json"))[0]
    lines = evaluate("--by", "expert", "--data", file).stdout.splitlines()
    assert lines[0] == "56 rows, through 7 adapters on one base model"
    shown = [line.split() for line in lines[lines.index(f"Scores on {file}") + 2 :]]
    tasks = {kind: Store(task_store).resolve(kind).task for kind in KINDS}
    assert shown == [
        [name, tasks[name].type, "8", tasks[name].metric.name, f"{evaluation['scores'][tasks[name].metric.name]:.3f}"]
        for name, evaluation in output.items()
    ]
    for name, evaluation in output.items():
        assert list(evaluation) == ["adapter", "data", "rows", "scores"]
        assert (evaluation["adapter"], evaluation["data"], evaluation["rows"]) == (f"{name}@1", str(file), 8)
        published = Store(task_store).resolve(name).manifest.scores["test"].as_dict()
        for scores in (evaluation["scores"], published):  # a bank does not know errors before calibration
            scores.get("calibration", {}).pop("ece_uncalibrated", None)
        assert almost_equal(evaluation["scores"], published)


def test_predictions_file_keeps_row_order(evaluate, predict, tmp_path):
    file = write_rows(tmp_path, make_rows())
    assert evaluate("--by", "expert", "--data", file, "--predictions", tmp_path / "out.jsonl", "--json").exit_code == 0
    out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf8").splitlines()]
    assert out == parse_json_lines(predict("--by", "expert", "--file", file, "--json"))


def test_versions_are_scored_separately(evaluate, tmp_path):
    rows = make_rows(["classes"]) + make_rows(["classes"], names="{}@1".format)
    output = parse_json_lines(evaluate("--by", "expert", "--data", write_rows(tmp_path, rows), "--json"))[0]
    assert list(output) == ["classes", "classes@1"]
    assert output["classes"] == output["classes@1"]


def test_errors_of_all_adapters_are_reported_together(evaluate, tmp_path):
    rows = [
        {"expert": "classes", "text": "x", "label": "goood"},
        {"expert": "rating", "text": "x", "label": "much"},
        {"expert": "rating", "text": "x", "label": 1},
        {"expert": "answers", "text": "x"},
        {"expert": "answers", "text": "y"},
        {"expert": "entities", "tokens": ["a"], "tags": ["B-PERS"]},
    ]
    result = evaluate("--by", "expert", "--data", write_rows(tmp_path, rows))
    output = one_line(result.stderr).replace(f"{tmp_path}/", "")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "4 problems; nothing was started." in output
    assert "classes label 'goood' occurs in its rows (1×, first at rows.jsonl:1) but not in the adapter." in output
    assert "Did you mean 'good'?" in output
    assert "rows.jsonl:2 rating expected label to be a number, found 'much'" in output
    assert "rows.jsonl:4 and every other row answers expected columns question and context and answers" in output
    assert "entities label 'PERS' occurs in its rows" in output


def test_evaluate_mixed_raises_documented_errors(task_store, tmp_path):  # noqa: F811
    with pytest.raises(RecipeError, match="Did you mean 'classes'"):
        peftlab.evaluate_mixed(write_rows(tmp_path, [{"e": "clases"}]), by="e", store=task_store, device="cpu")
    with pytest.raises(RecipeError, match="no such file"):
        peftlab.evaluate_mixed(tmp_path / "absent.jsonl", by="e", store=task_store, device="cpu")
    with pytest.raises(RecipeError, match="xls"):
        peftlab.evaluate_mixed(tmp_path / "x", by="e", data_format="xls", store=task_store, device="cpu")


# --- memory and slots


def test_memory_and_slot_limits_keep_predictions(predict, evaluate, task_store, tmp_path):  # noqa: F811
    file = write_rows(tmp_path, make_rows(count=4))
    bank = peftlab.load(*KINDS, store=task_store, device="cpu")
    little = ["--memory", f"{bank.num_bytes / 3 / 1000:.0f}KB", "--slots", "1"]
    expected = parse_json_lines(predict("--by", "expert", "--file", file, "--json"))
    assert almost_equal(parse_json_lines(predict("--by", "expert", "--file", file, "--json", *little)), expected)
    scores = [parse_json_lines(evaluate("--by", "expert", "--data", file, "--json", *more))[0] for more in ([], little)]
    assert almost_equal(scores[0], scores[1])


@pytest.mark.parametrize("command", [["predict", "classes", "x"], ["evaluate", "classes", "--data"]])
def test_memory_and_slots_options_are_passed_to_bank(task_store, monkeypatch, command):  # noqa: F811
    asked = {}
    load = banking.load

    def record(*names, **settings):
        asked.update(settings)
        return load(*names, **settings)

    monkeypatch.setattr("peftlab.runtime.load", record)
    monkeypatch.setattr("peftlab.runtime.evaluation.load", record)
    data = [task_store.parent / "classes" / "test.jsonl"] if command[0] == "evaluate" else []
    options = ["--memory", "1.5 MiB", "--slots", "3", "--store", task_store]
    assert run(*command, *data, *options, *OPTIONS).exit_code == 0
    assert (asked["memory"], asked["slots"]) == (3 * 2**19, 3)


@pytest.mark.parametrize("command", [["predict", "classes", "x"], ["evaluate", "classes", "--data", "x"]])
def test_invalid_memory_and_slots_fail(command):
    size = run(*command, "--memory", "2 gigs")
    assert size.exit_code == 2
    assert "'2 gigs' should be a number and one of KB, MB, GB" in one_line(size.output)
    assert "null" not in size.output
    for slots in ("0", "-1", "two"):
        assert run(*command, "--slots", slots).exit_code == 2


def test_memory_below_adapter_size_fails(predict, task_store):  # noqa: F811
    result = predict("classes", "x", "--memory", "1KB")
    assert (result.exit_code, "Give them more: --memory" in one_line(result.output)) == (5, True)
    data = task_store.parent / "classes" / "test.jsonl"
    with pytest.raises(MemoryBudgetError):
        peftlab.evaluate("classes", data, store=task_store, device="cpu", memory=1000)


# --- long inputs


def test_predictions_are_printed_incrementally(predict, monkeypatch):
    """The bank fails at its third row, after the first two rows are printed."""
    monkeypatch.setattr(requests, "CHUNK_SIZE", 2)
    predict_chunk = requests.Request._predict_chunk

    def fail_later(self, chunk, *rest):
        if any(getattr(example, "text", "") == "stop" for _, example in chunk):
            raise IntegrityError("stopped")
        return predict_chunk(self, chunk, *rest)

    monkeypatch.setattr(requests.Request, "_predict_chunk", fail_later)
    result = predict("classes", "a", "b", "stop", "--json")
    assert result.exit_code == 4
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == ["a", "b"]


def test_invalid_late_rows_fail_before_prediction(predict, tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "CHUNK_SIZE", 2)
    rows = [*make_rows(["classes"]), {"expert": "answers", "question": 3, "context": "x"}, *make_rows(["topics"])]
    result = predict("--by", "expert", "--file", write_rows(tmp_path, rows), "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "rows.jsonl:9 answers" in one_line(result.output)


def test_row_check_keeps_no_rows_in_memory(task_store):  # noqa: F811
    task = Store(task_store).resolve("classes").task
    errors = ErrorCollector()
    examples = read_input_rows((("classes", text) for text in ["a", "b"]), {"classes": task}, errors, first=7)
    assert [example.where for example in examples] == ["row 7", "row 8"]
    list(read_input_rows([("classes", {"texts": "a"})], {"classes": task}, errors, first=7))
    assert [(issue.where, issue.key) for issue in errors.issues] == [("row 7", "")]


def in_terminal(store, file, *options, stdout_too):
    """Run the command with a terminal as standard error, and optionally as output → (terminal, standard output)."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "peftlab", "predict", "classes", "--file", file, "--store", store, *options]
    process = subprocess.Popen(
        [*map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=theirs if stdout_too else file.with_suffix(".out").open("wb"),
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while read := os.read(ours, 65536):
            shown += read
    except OSError:
        pass  # what the end of a terminal looks like
    assert process.wait() == 0
    os.close(ours)
    return shown.decode(), "" if stdout_too else file.with_suffix(".out").read_text(encoding="utf8")


def test_progress_bar_only_in_terminal_for_many_rows(task_store, tmp_path):  # noqa: F811
    many, few = tmp_path / "many.txt", tmp_path / "few.txt"
    many.write_text("it rained .\n" * 301)
    few.write_text("it rained .\n" * 3)
    shown, printed = in_terminal(task_store, many, "--json", stdout_too=False)
    assert "301/301" in shown
    assert "it rained" not in shown
    assert [json.loads(line)["text"] for line in printed.splitlines()] == ["it rained ."] * 301
    shown, _ = in_terminal(task_store, many, stdout_too=True)
    assert "301/301" in shown
    assert shown.count("it rained .") == 301
    shown, printed = in_terminal(task_store, few, "--json", stdout_too=False)
    assert (shown, len(printed.splitlines())) == ("", 3)

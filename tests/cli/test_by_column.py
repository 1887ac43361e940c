"""Rows that name their adapter in a column: one shuffled file through one bank, answered and scored for each."""

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
from tests.task_stores import KINDS, lines_of, one_line, recipe_for, run, task_store  # noqa: F401  # a fixture

OPTIONS = ("--device", "cpu")


def shuffled(kinds=KINDS, *, by="expert", count=8, names=lambda kind: kind):
    """Rows of several kinds, each with its adapter's name, in any order but always the same."""
    rows = [{by: names(kind), **row} for kind in kinds for row in KINDS[kind][1][:count]]
    return random.Random(5).sample(rows, len(rows))


def without_name(row):
    return {name: value for name, value in row.items() if name != "expert"}


def written(folder, rows, name="rows.jsonl"):
    (folder / name).write_text(rows if isinstance(rows, str) else lines_of(rows), encoding="utf8")
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
def refused(predict, evaluate, tmp_path):
    """What both commands say of rows that they cannot take, on one line without the folder."""

    def refused(rows, *options):
        told = []
        for command, option in ((predict, "--file"), (evaluate, "--data")):
            result = command("--by", "expert", option, written(tmp_path, rows), *options)
            assert (result.exit_code, result.stdout) == (2, "")
            told.append(one_line(result.stderr).replace(f"{tmp_path}/", ""))
        return told

    return refused


def objects(result):
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def alike(one, other):
    """Whether two JSON values are the same but for rounding in other batches."""
    if isinstance(one, dict) and isinstance(other, dict):
        return set(one) == set(other) and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == (pytest.approx(other, abs=2e-4) if isinstance(other, float) else other)


# --- answers


def test_each_row_is_answered_by_its_own_adapter_in_the_order_of_the_file(predict, tmp_path):
    rows = shuffled()
    told = objects(predict("--by", "expert", "--file", written(tmp_path, rows), "--json"))
    assert [answer["adapter"] for answer in told] == [row["expert"] for row in rows]
    for kind in KINDS:
        mine = [without_name(row) for row in rows if row["expert"] == kind]
        alone = objects(predict(kind, "--file", written(tmp_path, mine), "--json"))
        assert alike([answer for answer in told if answer["adapter"] == kind], alone)


def test_the_command_says_what_a_stream_says(predict, task_store, tmp_path):  # noqa: F811
    rows = shuffled(["classes", "topics", "answers"])
    told = objects(predict("--by", "expert", "--file", written(tmp_path, rows), "--json"))
    bank = peftlab.load("classes", "topics", "answers", store=task_store, device="cpu")
    heard = []
    answers = bank.stream([(row["expert"], row) for row in rows], told=heard.append)
    assert [answer.as_dict() for answer in answers] == told
    assert heard == sorted(heard)
    assert heard[-1] == len(rows)


def test_a_version_may_be_named_and_blanks_around_a_name_do_not_matter(predict, tmp_path):
    rows = [{"expert": name, "text": "it rained ."} for name in ("classes@1", "classes", " topics ")]
    told = objects(predict("--by", "expert", "--file", written(tmp_path, rows), "--json"))
    assert [answer["adapter"] for answer in told] == ["classes@1", "classes", "topics"]
    assert {**told[0], "adapter": ""} == {**told[1], "adapter": ""}


def test_people_see_each_answer_in_the_form_of_its_task_after_its_adapter(predict, tmp_path):
    rows = shuffled(["classes", "entities"])
    shown = predict("--by", "expert", "--file", written(tmp_path, rows)).stdout.splitlines()
    firsts = [line for line in shown if not line.startswith("  ")]
    assert [line.split()[0] for line in firsts] == [row["expert"] for row in rows]
    assert {line.index(line.split()[1]) for line in firsts} == {len("entities") + 2}


def test_tags_are_printed_where_every_adapter_has_them(predict, tmp_path):
    rows = shuffled(["entities", "characters"], count=3)
    printed = predict("--by", "expert", "--file", written(tmp_path, rows), "--conll", "iob2")
    texts = [list(lines) for full, lines in groupby(printed.stdout.splitlines(), bool) if full]
    words = [[line.split("\t")[0] for line in lines] for lines in texts]
    assert words == [row["tokens"] for row in rows]
    mixed = predict("--by", "expert", "--file", written(tmp_path, shuffled(["entities", "classes"])), "--conll", "iob2")
    assert (mixed.exit_code, mixed.stdout) == (2, "")
    assert "classes predicts no tags" in one_line(mixed.output)


def test_a_context_is_for_all_rows_and_refused_if_one_adapter_takes_none(predict, tmp_path):
    rows = [{"expert": "answers", "question": "who wrote ?"}, {"expert": "rating", "text": "it rained ."}]
    told = objects(predict("--by", "expert", "--file", written(tmp_path, rows), "--context", "Ada wrote .", "--json"))
    assert (told[0]["context"], told[1]["text_pair"]) == ("Ada wrote .", "Ada wrote .")
    rows.append({"expert": "entities", "text": "x"})
    result = predict("--by", "expert", "--file", written(tmp_path, rows), "--context", "Ada wrote .")
    assert (result.exit_code, "--context is not an input of entities" in one_line(result.output)) == (2, True)


@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_a_table_has_empty_cells_for_the_columns_of_others(predict, evaluate, tmp_path, form):
    """They are no second text, no tokens and no spans: an adapter's columns are those that it fills."""
    rows = shuffled(["classes", "topics", "rating", "entities", "answers"])
    file = tmp_path / f"rows.{form}"
    with file.open("w", encoding="utf8", newline="") as opened:
        plain = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None} if form == "tsv" else {}
        writer = csv.DictWriter(opened, list(dict.fromkeys(name for row in rows for name in row)), **plain)
        writer.writeheader()
        writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    as_lines = written(tmp_path, rows)
    assert objects(predict("--by", "expert", "--file", file, "--json")) == objects(
        predict("--by", "expert", "--file", as_lines, "--json")
    )
    scores = [objects(evaluate("--by", "expert", "--data", data, "--json"))[0] for data in (file, as_lines)]
    assert [told["scores"] for told in scores[0].values()] == [told["scores"] for told in scores[1].values()]


def test_nulls_of_a_parquet_file_are_columns_of_others_too(predict, tmp_path):
    from datasets import Dataset

    rows = shuffled(["classes", "rating", "answers"], count=3)
    columns = ("expert", "text", "text_pair", "question", "context")
    table = Dataset.from_list([{name: row.get(name) for name in columns} for row in rows])
    table.to_parquet(tmp_path / "rows.parquet")
    expected = objects(predict("--by", "expert", "--file", written(tmp_path, rows), "--json"))
    assert objects(predict("--by", "expert", "--file", tmp_path / "rows.parquet", "--json")) == expected


def test_an_empty_text_of_a_json_line_is_asked_as_it_is(predict, tmp_path):
    rows = [{"expert": "classes", "text": ""}, {"expert": "answers", "question": "", "context": ""}]
    told = objects(predict("--by", "expert", "--file", written(tmp_path, rows), "--json"))
    assert [told[0]["text"], told[1]["context"]] == ["", ""]


def test_columns_may_have_other_names_the_adapters_own_too(predict, tmp_path):
    rows = [{"who": "classes", "review": "it rained ."}, {"who": "answers", "question": "who ?", "context": "Ada ."}]
    told = objects(predict("--by", "who", "--file", written(tmp_path, rows), "--column", "text=review", "--json"))
    assert [told[0]["text"], told[1]["question"]] == ["it rained .", "who ?"]


# --- rows that cannot be asked


def test_every_unknown_name_is_told_once_with_its_first_row_and_the_nearest(refused):
    texts = [("clases", "a"), ("classes", "b"), ("clases", "c"), ("Topics!", "d"), ("topics@7", "e")]
    for told in refused([{"expert": name, "text": text, "label": "good", "labels": []} for name, text in texts]):
        assert "3 problems; nothing was started." in told
        assert "rows.jsonl:1 no adapter 'clases' in " in told
        assert "Did you mean 'classes'? There: answers, characters" in told
        assert "2 rows name it; this is the first." in told
        assert "rows.jsonl:4 'Topics!' cannot be an adapter's name" in told
        assert "rows.jsonl:5 no version '7' of 'topics'" in told


def test_rows_without_a_name_and_broken_ones_are_told_at_once_with_unknown_names(refused):
    good = {"expert": "classes", "text": "x", "label": "good"}
    rows = [good, {"exprt": "classes", "text": "x"}, *({**good, "expert": name} for name in (3, " ", "no"))]
    for told in refused(lines_of(rows) + "{\n" + lines_of([{"expert": "answers", "text": "x"}])):
        assert "6 problems; nothing was started." in told
        assert "rows.jsonl:2 no column 'expert', which should name the adapter of the row. Did you mean 'exprt" in told
        assert "rows.jsonl:3 expected expert to name an adapter, found 3" in told
        assert "rows.jsonl:4 expected expert to name an adapter, found ' '" in told
        assert "rows.jsonl:5 no adapter 'no' in" in told
        assert "rows.jsonl:6 expected one JSON object on this line" in told
        assert "rows.jsonl:7 answers expected columns question and context" in told


def test_a_column_that_no_row_has_is_told_once(refused):
    for told in refused([{"text": "x", "label": "good"}] * 9):
        assert told.startswith("1 problem;")
        assert "rows.jsonl:1 and every other row no column 'expert', which should name the adapter" in told
        assert "Columns there: label, text." in told


def test_of_very_many_rows_without_a_name_the_first_are_told(refused):
    for told in refused([*({"text": f"{n}"} for n in range(9)), {"expert": "classes", "text": "x", "label": "good"}]):
        assert "rows.jsonl:5 no column" in told
        assert "rows.jsonl:6" not in told
        assert "… and 4 more rows like these." in told


def test_files_that_cannot_be_read_are_told(predict, refused, tmp_path):
    assert all("rows.jsonl holds no rows." in told for told in refused(""))
    assert all("no column 'txt' in" in told for told in refused(shuffled(), "--column", "text=txt"))
    absent = predict("--by", "expert", "--file", tmp_path / "row.jsonl")
    assert (absent.exit_code, "Did you mean 'rows.jsonl'?" in absent.output) == (2, True)


def test_a_damaged_adapter_is_told_as_such(task_store, tmp_path):  # noqa: F811
    store = Path(shutil.copytree(task_store, tmp_path / "store"))
    (store / "topics" / "1" / "README.md").write_text("other")
    file = written(tmp_path, shuffled(["classes", "topics"]))
    for command, option in (("predict", "--file"), ("evaluate", "--data")):
        result = run(command, "--by", "expert", option, file, "--store", store, *OPTIONS)
        assert (result.exit_code, "README.md: changed" in result.output) == (4, True)


def test_adapters_of_another_base_are_refused_as_ever(task_store, tmp_path):  # noqa: F811
    store = Path(shutil.copytree(task_store, tmp_path / "store"))
    other = build_tiny_bert(tmp_path / "other", seed=9)
    tune(recipe_for(tmp_path / "data", other, "classes"), store=store, overrides={"name": "stranger"})
    rows = [{"expert": name, "text": "x", "label": "good"} for name in ("classes", "stranger")]
    with pytest.raises(IntegrityError, match="stranger@1"):
        peftlab.evaluate_mixed(written(tmp_path, rows), by="expert", store=store, device="cpu")


# --- options that do not go together


@pytest.mark.parametrize(
    ("arguments", "said"),
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
def test_what_predict_would_have_to_ignore_is_refused(predict, arguments, said):
    result = predict(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in one_line(result.output)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["classes", "--by", "expert", "--data", "rows.jsonl"], "omit 'classes', or omit --by"),
        (["--data", "rows.jsonl"], "name an ADAPTER, or give --by COLUMN"),
        (["--by", "expert"], "Missing option '--data'"),
    ],
)
def test_what_evaluate_would_have_to_ignore_is_refused(evaluate, arguments, said):
    result = evaluate(*arguments)
    assert (result.exit_code, said in one_line(result.output)) == (2, True)


# --- scores


def test_each_adapter_scores_on_its_rows_as_it_does_alone(task_store, tmp_path):  # noqa: F811
    rows = shuffled()
    heard = []
    result = peftlab.evaluate_mixed(
        written(tmp_path, rows),
        by="expert",
        store=task_store,
        device="cpu",
        told=lambda done, total: heard.append((done, total)),
    )
    assert list(result.by_adapter) == list(dict.fromkeys(row["expert"] for row in rows))
    assert [answer.adapter for answer in result.answers] == [row["expert"] for row in rows]
    assert heard[-1] == (len(rows), len(rows))
    for kind, mine in result.by_adapter.items():
        file = written(tmp_path, [row for row in rows if row["expert"] == kind], f"{kind}.jsonl")
        alone = peftlab.evaluate(kind, file, store=task_store, device="cpu")
        assert alike(mine.scores.as_dict(), alone.scores.as_dict())
        assert {**vars(mine.ledger), "source": ""} == {**vars(alone.ledger), "source": ""}
        assert alike([p.as_dict() for p in mine.predictions], [p.as_dict() for p in alone.predictions])
        assert (mine.adapter, mine.task.type) == (alone.adapter, alone.task.type)
        assert [answer.prediction for answer in result.answers if answer.adapter == kind] == mine.predictions


def test_the_command_prints_a_line_for_each_adapter(evaluate, task_store, tmp_path):  # noqa: F811
    rows = shuffled()
    file = written(tmp_path, rows)
    told = objects(evaluate("--by", "expert", "--data", file, "--json"))[0]
    lines = evaluate("--by", "expert", "--data", file).stdout.splitlines()
    assert lines[0] == "56 rows, through 7 adapters on one base model"
    shown = [line.split() for line in lines[lines.index(f"Scores on {file}") + 2 :]]
    tasks = {kind: Store(task_store).resolve(kind).task for kind in KINDS}
    assert shown == [
        [name, tasks[name].type, "8", tasks[name].main_score, f"{mine['scores'][tasks[name].main_score]:.3f}"]
        for name, mine in told.items()
    ]
    for name, mine in told.items():
        assert list(mine) == ["adapter", "data", "rows", "scores"]
        assert (mine["adapter"], mine["data"], mine["rows"]) == (f"{name}@1", str(file), 8)
        assert alike(mine["scores"], Store(task_store).resolve(name).manifest.scores["test"].as_dict())


def test_predictions_are_written_in_the_order_of_the_rows(evaluate, predict, tmp_path):
    file = written(tmp_path, shuffled())
    assert evaluate("--by", "expert", "--data", file, "--predictions", tmp_path / "out.jsonl", "--json").exit_code == 0
    out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf8").splitlines()]
    assert out == objects(predict("--by", "expert", "--file", file, "--json"))


def test_two_versions_are_two_adapters_to_score(evaluate, tmp_path):
    rows = shuffled(["classes"]) + shuffled(["classes"], names="{}@1".format)
    told = objects(evaluate("--by", "expert", "--data", written(tmp_path, rows), "--json"))[0]
    assert list(told) == ["classes", "classes@1"]
    assert told["classes"] == told["classes@1"]


def test_problems_of_labelled_rows_are_told_for_all_adapters_at_once(evaluate, tmp_path):
    rows = [
        {"expert": "classes", "text": "x", "label": "goood"},
        {"expert": "rating", "text": "x", "label": "much"},
        {"expert": "rating", "text": "x", "label": 1},
        {"expert": "answers", "text": "x"},
        {"expert": "answers", "text": "y"},
        {"expert": "entities", "tokens": ["a"], "tags": ["B-PERS"]},
    ]
    result = evaluate("--by", "expert", "--data", written(tmp_path, rows))
    told = one_line(result.stderr).replace(f"{tmp_path}/", "")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "4 problems; nothing was started." in told
    assert "classes label 'goood' occurs in its rows (1×, first at rows.jsonl:1) but not in the adapter." in told
    assert "Did you mean 'good'?" in told
    assert "rows.jsonl:2 rating expected label to be a number, found 'much'" in told
    assert "rows.jsonl:4 and every other row answers expected columns question and context and answers" in told
    assert "entities label 'PERS' occurs in its rows" in told


def test_the_api_raises_what_it_says(task_store, tmp_path):  # noqa: F811
    with pytest.raises(RecipeError, match="Did you mean 'classes'"):
        peftlab.evaluate_mixed(written(tmp_path, [{"e": "clases"}]), by="e", store=task_store, device="cpu")
    with pytest.raises(RecipeError, match="no such file"):
        peftlab.evaluate_mixed(tmp_path / "absent.jsonl", by="e", store=task_store, device="cpu")
    with pytest.raises(RecipeError, match="xls"):
        peftlab.evaluate_mixed(tmp_path / "x", by="e", data_format="xls", store=task_store, device="cpu")


# --- memory and slots


def test_little_memory_and_one_slot_change_no_answer(predict, evaluate, task_store, tmp_path):  # noqa: F811
    file = written(tmp_path, shuffled(count=4))
    bank = peftlab.load(*KINDS, store=task_store, device="cpu")
    little = ["--memory", f"{bank.num_bytes / 3 / 1000:.0f}KB", "--slots", "1"]
    expected = objects(predict("--by", "expert", "--file", file, "--json"))
    assert alike(objects(predict("--by", "expert", "--file", file, "--json", *little)), expected)
    scores = [objects(evaluate("--by", "expert", "--data", file, "--json", *more))[0] for more in ([], little)]
    assert alike(scores[0], scores[1])


@pytest.mark.parametrize("command", [["predict", "classes", "x"], ["evaluate", "classes", "--data"]])
def test_memory_and_slots_reach_the_bank(task_store, monkeypatch, command):  # noqa: F811
    asked = {}
    load = banking.load

    def noted(*names, **settings):
        asked.update(settings)
        return load(*names, **settings)

    monkeypatch.setattr("peftlab.runtime.load", noted)
    monkeypatch.setattr("peftlab.runtime.evaluation.load", noted)
    data = [task_store.parent / "classes" / "test.jsonl"] if command[0] == "evaluate" else []
    options = ["--memory", "1.5 MiB", "--slots", "3", "--store", task_store]
    assert run(*command, *data, *options, *OPTIONS).exit_code == 0
    assert (asked["memory"], asked["slots"]) == (3 * 2**19, 3)


@pytest.mark.parametrize("command", [["predict", "classes", "x"], ["evaluate", "classes", "--data", "x"]])
def test_sizes_and_numbers_that_are_none_are_refused(command):
    size = run(*command, "--memory", "2 gigs")
    assert size.exit_code == 2
    assert "'2 gigs' should be a number and one of KB, MB, GB" in one_line(size.output)
    assert "null" not in size.output
    for slots in ("0", "-1", "two"):
        assert run(*command, "--slots", slots).exit_code == 2


def test_less_memory_than_an_adapter_takes_is_told(predict, task_store):  # noqa: F811
    result = predict("classes", "x", "--memory", "1KB")
    assert (result.exit_code, "Give them more: --memory" in one_line(result.output)) == (5, True)
    data = task_store.parent / "classes" / "test.jsonl"
    with pytest.raises(MemoryBudgetError):
        peftlab.evaluate("classes", data, store=task_store, device="cpu", memory=1000)


# --- long inputs


def test_answers_are_printed_before_later_rows_are_computed(predict, monkeypatch):
    """A bank that fails at its third row: the two before are on standard output by then."""
    monkeypatch.setattr(requests, "AT_A_TIME", 2)
    whole = requests.Request._answers

    def failing(self, chunk, *rest):
        if any(getattr(example, "text", "") == "stop" for _, example in chunk):
            raise IntegrityError("stopped")
        return whole(self, chunk, *rest)

    monkeypatch.setattr(requests.Request, "_answers", failing)
    result = predict("classes", "a", "b", "stop", "--json")
    assert result.exit_code == 4
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == ["a", "b"]


def test_wrong_rows_far_behind_are_told_before_anything_is_computed(predict, tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "AT_A_TIME", 2)
    rows = [*shuffled(["classes"]), {"expert": "answers", "question": 3, "context": "x"}, *shuffled(["topics"])]
    result = predict("--by", "expert", "--file", written(tmp_path, rows), "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "rows.jsonl:9 answers" in one_line(result.output)


def test_rows_are_read_for_their_problems_without_being_kept(task_store):  # noqa: F811
    task = Store(task_store).resolve("classes").task
    errors = ErrorCollector()
    examples = read_input_rows((("classes", text) for text in ["a", "b"]), {"classes": task}, errors, first=7)
    assert [example.where for example in examples] == ["row 7", "row 8"]
    list(read_input_rows([("classes", {"texts": "a"})], {"classes": task}, errors, first=7))
    assert [(issue.where, issue.key) for issue in errors.issues] == [("row 7", "")]


def in_terminal(store, file, *options, stdout_too):
    """A real command whose standard error, and output if asked, is a terminal: (terminal, standard output)."""
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


def test_a_bar_is_shown_in_a_terminal_for_many_rows_and_never_in_what_programs_read(task_store, tmp_path):  # noqa: F811
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

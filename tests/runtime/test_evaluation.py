"""`peftlab evaluate` and `peftlab.evaluate`: a published adapter on labelled rows, for every task."""

import csv
import json

import pytest

import peftlab
from peftlab.errors import AdapterNotFoundError, PeftlabError, RecipeError
from peftlab.store import Store
from tests.task_stores import KINDS, one_line, run, task_store, to_json_lines  # noqa: F401  # a fixture


@pytest.fixture
def evaluate(task_store):  # noqa: F811
    def evaluate(adapter, data, *options):
        return run("evaluate", adapter, "--data", data, *options, "--store", task_store, "--device", "cpu")

    return evaluate


@pytest.fixture
def evaluate_error(evaluate, tmp_path):
    """What is told of rows that cannot be scored, on one line."""

    def evaluate_error(adapter, rows, *options):
        (tmp_path / "rows.jsonl").write_text(rows if isinstance(rows, str) else to_json_lines(rows), encoding="utf8")
        result = evaluate(adapter, tmp_path / "rows.jsonl", *options)
        assert (result.exit_code, result.stdout) == (2, "")
        return one_line(result.stderr).replace(f"{tmp_path}/", "")

    return evaluate_error


def test_file(store, kind):
    return store.parent / kind / "test.jsonl"


test_file.__test__ = False


def write_table(file, rows):
    """Rows in a csv or tsv file, lists as JSON in its cells."""
    with file.open("w", encoding="utf8", newline="") as opened:
        plain = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}  # quotes are only quotes
        writer = csv.DictWriter(opened, list(rows[0]), **(plain if file.suffix == ".tsv" else {}))
        writer.writeheader()
        writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    return file


# --- scores


@pytest.mark.parametrize("kind", KINDS)
def test_scores_match_manifest(evaluate, task_store, kind):  # noqa: F811
    expected = Store(task_store).resolve(kind).manifest.scores["test"].as_dict()
    result = evaluate(kind, test_file(task_store, kind), "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 0
    assert list(told) == ["adapter", "data", "rows", "scores"]
    assert (told["adapter"], told["rows"]) == (f"{kind}@1", 8)
    assert told["scores"].keys() == expected.keys()
    if calibration := expected.pop("calibration", None):
        measured = told["scores"]["calibration"]
        assert measured["counts"] == calibration["counts"]
        for name in ("ece", "ece_debiased", "confidences", "accuracies"):
            assert measured[name] == pytest.approx(calibration[name], abs=2e-4), name
    for name, value in expected.items():
        assert told["scores"][name] == (pytest.approx(value, abs=2e-4) if isinstance(value, float) else value), name


@pytest.mark.parametrize("kind", KINDS)
def test_text_output_has_rows_targets_and_scores(evaluate, task_store, kind):  # noqa: F811
    manifest = Store(task_store).resolve(kind).manifest
    result = evaluate(kind, test_file(task_store, kind))
    assert result.exit_code == 0
    ledger = manifest.data.ledger["test"]
    targets = {
        "token-classification": "entities",
        "text-classification": "labels",
        "regression": "numbers",
        "question-answering": "answers",
        "relation-extraction": "relations",
    }[manifest.task.type]
    assert result.stdout.startswith(f"8 rows with {ledger.targets} {targets}, through {kind}@1\n")
    scores = manifest.scores["test"].as_dict()
    by_label = scores.pop("by_label")
    confusion = scores.pop("confusion", None)
    if calibration := scores.pop("calibration", None):
        assert f"ECE {calibration['ece']:.3f}, {calibration['ece_debiased']:.3f} without chance\n" in result.stdout
    for value in scores.values():
        assert f"{value:.3f}" in result.stdout
    for label in by_label:
        assert label in result.stdout
    assert ("Gold ↓ predicted →" in result.stdout) == bool(confusion)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_file_has_one_line_per_row(evaluate, task_store, tmp_path, kind):  # noqa: F811
    data = test_file(task_store, kind)
    assert evaluate(kind, data, "--predictions", tmp_path / "out.jsonl", "--json").exit_code == 0
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf8").splitlines()]
    predict_each = run("predict", kind, "--file", data, "--json", "--store", task_store, "--device", "cpu")
    expected = [json.loads(line) for line in predict_each.stdout.splitlines()]
    assert len(written) == 8
    for one, other in zip(written, expected, strict=True):
        assert {"adapter": kind, **one} == other


def test_accuracy_is_fraction_of_correct_predictions(task_store):  # noqa: F811
    result = peftlab.evaluate("classes", test_file(task_store, "classes"), store=task_store, device="cpu")
    gold = [row["label"] for row in KINDS["classes"][1][:8]]
    right = sum(prediction.label == label for prediction, label in zip(result.predictions, gold, strict=True))
    assert result.scores.values["accuracy"] == pytest.approx(right / 8)
    assert sum(map(sum, result.scores.confusion.counts)) == 8


def test_evaluate_returns_scores_ledger_and_predictions(task_store):  # noqa: F811
    heard = []
    result = peftlab.evaluate(
        "rating@1",
        test_file(task_store, "rating"),
        store=task_store,
        device="cpu",
        on_progress=lambda done, total: heard.append((done, total)),
    )
    assert str(result.adapter) == "rating@1"
    assert (result.task.type, result.ledger.read, result.ledger.used, result.ledger.targets) == ("regression", 8, 8, 8)
    assert [prediction.text for prediction in result.predictions] == [row["text"] for row in KINDS["rating"][1][:8]]
    assert set(result.scores.values) == {"pearson", "spearman", "rmse", "mae"}
    assert heard == [(8, 8)]


def test_single_row(evaluate, tmp_path):
    for kind, (_, rows) in KINDS.items():
        (tmp_path / "rows.jsonl").write_text(to_json_lines(rows[:1]), encoding="utf8")
        result = evaluate(kind, tmp_path / "rows.jsonl", "--json")
        assert result.exit_code == 0
        assert "NaN" not in result.stdout
        assert json.loads(result.stdout)["rows"] == 1


# --- files in other dress


@pytest.mark.parametrize("kind", ["entities", "classes", "topics", "rating", "answers", "relations"])
@pytest.mark.parametrize("form", ["csv", "tsv", "json"])
def test_all_file_formats_give_equal_scores(evaluate, task_store, tmp_path, kind, form):  # noqa: F811
    rows = KINDS[kind][1][:8]
    file = tmp_path / f"rows.{form}"
    if form == "json":
        file.write_text(json.dumps(rows, indent=1), encoding="utf8")
    else:
        write_table(file, rows)
    results = [evaluate(kind, data, "--json") for data in (file, test_file(task_store, kind))]
    assert [result.exit_code for result in results] == [0, 0]
    told, expected = (json.loads(result.stdout)["scores"] for result in results)
    assert told == expected


def test_squad_and_conll_files(evaluate, tmp_path):
    row = KINDS["answers"][1][0]
    paragraph = {"context": row["context"], "qas": [{name: row[name] for name in ("id", "question", "answers")}]}
    (tmp_path / "dev.json").write_text(json.dumps({"data": [{"title": "t", "paragraphs": [paragraph]}]}))
    assert json.loads(evaluate("answers", tmp_path / "dev.json", "--json").stdout)["rows"] == 1
    (tmp_path / "test.conll").write_text("Ada\tB-PER\nleft\tO\n\nRome\tI-LOC\n")
    result = evaluate("entities", tmp_path / "test.conll")
    assert result.stdout.startswith("2 rows with 2 entities, through entities@1\n")
    assert "1 × entities opened by I- (IOB1, or a missing B-)" in result.stdout


def test_columns_header_encoding_and_format_options(evaluate, tmp_path):
    expected = json.loads(
        evaluate("classes", write_table(tmp_path / "plain.csv", KINDS["classes"][1][:3]), "--json").stdout
    )
    rows = [(row["label"], row["text"]) for row in KINDS["classes"][1][:3]]
    lines = "".join(f'{label},"{text}"\n' for label, text in rows)
    mapped = ["--column", "label=l", "--column", "text=t"]
    named = {
        "named.csv": (f"stars,review\n{lines}".encode(), ["--column", "text=review", "--column", "label=stars"]),
        "bare.csv": (lines.encode(), ["--header", "label,text"]),
        "odd.data": (f"\ufefflabel,text\n{lines}".encode(), ["--format", "csv"]),
        "wide.csv": (f"label,text\n{lines}".encode("utf-16"), ["--encoding", "utf-16"]),
        "mine.csv": (lines.encode("utf-16"), ["--encoding", "utf-16", "--header", "l,t", *mapped]),
    }
    for name, (content, options) in named.items():
        (tmp_path / name).write_bytes(content)
        result = evaluate("classes", tmp_path / name, *options, "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["scores"] == expected["scores"]


def test_header_names_can_have_spaces(evaluate, tmp_path):
    (tmp_path / "rows.csv").write_text("good,the train was quiet .\n")
    assert evaluate("classes", tmp_path / "rows.csv", "--header", "label, text").exit_code == 0


# --- what cannot be scored


@pytest.mark.parametrize(
    ("kind", "row", "label"),
    [
        ("classes", {"text": "x", "label": "goood"}, "goood"),
        ("topics", {"text": "x", "labels": ["train", "trian"]}, "trian"),
        ("relations", {"text": "<e1>a</e1> <e2>b</e2>", "label": "left(e2,e1)"}, "left(e2,e1)"),
        ("entities", {"tokens": ["a"], "tags": ["B-PERS"]}, "PERS"),
    ],
)
def test_unknown_label_error_with_line_and_suggestion(evaluate_error, kind, row, label):
    told = evaluate_error(kind, [KINDS[kind][1][0], row])
    assert f"label '{label}' occurs in the data (1×, first at rows.jsonl:2) but not in the adapter." in told
    assert "Did you mean '" in told
    assert "Available labels: " in told
    assert "data.the data" not in told


def test_numeric_label_is_not_a_label_index(tiny_base, tmp_path):
    """Stars 1 to 3: a row with 0 is unknown, not the first of them."""
    from peftlab.data import Row
    from peftlab.tasks import restore_task

    task = restore_task("text-classification", ["1", "2", "3"], {}, {})
    assert task.read(Row({"text": "x", "label": 0}, "x")).labels == ("0",)
    assert task.read(Row({"text": "x", "label": 2}, "x")).labels == ("2",)


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("classes", {"text": "x"}, "expected columns text and label; found text."),
        ("classes", {"text": "", "label": "good"}, "expected text to hold some text, found ''"),
        ("classes", {"text": "x", "label": None}, "expected label to be a name or a whole number, found None"),
        ("topics", {"text": "x", "labels": 3.5}, "expected labels to be a list of names, found 3.5"),
        ("rating", {"text": "x", "label": "much"}, "expected label to be a number, found 'much'"),
        ("rating", {"text": "x", "label": 10**400}, "expected label to be a number, found 1000"),
        ("answers", {"question": "x", "context": "y"}, "expected columns question and context and answers"),
        ("answers", {"question": "x", "context": "y", "answer": "z"}, "it does not occur there"),
        ("relations", {"text": "x", "label": "Other"}, "expected columns text and head and tail and label"),
        ("entities", {"tokens": ["a", "b"], "tags": ["O"]}, "expected as many tags as tokens, found 1 tags for 2"),
        ("entities", {"text": "a", "entities": [{"start": 0, "end": 9, "label": "PER"}]}, "0 ≤ start < end ≤ 1"),
    ],
)
def test_invalid_row_error_with_line(evaluate_error, kind, row, expected):
    told = evaluate_error(kind, [KINDS[kind][1][0], row])
    assert "rows.jsonl:2" in told
    assert expected in told


def test_invalid_files_raise_error(evaluate, evaluate_error, tmp_path):
    assert "rows.jsonl:2 expected one JSON object on this line" in evaluate_error(
        "classes", '{"text": "x", "label": "good"}\n{'
    )
    assert "rows.jsonl holds no rows." in evaluate_error("classes", "")
    absent = evaluate("classes", tmp_path / "row.jsonl")
    assert (absent.exit_code, "Did you mean 'rows.jsonl'?" in absent.output) == (2, True)
    folder = evaluate("classes", tmp_path)
    assert (folder.exit_code, "is a folder" in folder.output) == (2, True)
    unknown = evaluate("classes", tmp_path / "rows.jsonl", "--encoding", "utf-9")
    assert (unknown.exit_code, "unknown encoding 'utf-9'" in unknown.output) == (2, True)
    missing = evaluate("classes", tmp_path / "rows.jsonl", "--column", "text=txt")
    assert missing.exit_code == 2


@pytest.mark.parametrize("header", ["text,text", "text,,label", ","])
def test_empty_header_raises_error(evaluate, tmp_path, header):
    (tmp_path / "rows.csv").write_text("a,good\n")
    assert evaluate("classes", tmp_path / "rows.csv", "--header", header).exit_code == 2


def test_invalid_predictions_path_raises_error(evaluate, task_store, tmp_path):  # noqa: F811
    result = evaluate("classes", test_file(task_store, "classes"), "--predictions", tmp_path / "none" / "out.jsonl")
    assert result.exit_code in (2, 5)
    assert "out.jsonl" in result.output


def test_unknown_adapter_error_with_suggestion(evaluate, task_store):  # noqa: F811
    result = evaluate("clases", test_file(task_store, "classes"))
    assert (result.exit_code, "Did you mean 'classes'?" in result.output) == (3, True)
    assert evaluate("classes@7", test_file(task_store, "classes")).exit_code == 3


def test_missing_arguments_raise_usage_error(task_store):  # noqa: F811
    assert run("evaluate", "classes", "--store", task_store).exit_code == 2
    assert run("evaluate").exit_code == 2
    assert run("evaluate", "classes", "--data", "x", "--format", "xls", "--store", task_store).exit_code == 2


def test_evaluate_raises_documented_errors(task_store, tmp_path):  # noqa: F811
    with pytest.raises(AdapterNotFoundError, match="Did you mean 'classes'"):
        peftlab.evaluate("clases", tmp_path / "x", store=task_store)
    with pytest.raises(RecipeError, match="no such file"):
        peftlab.evaluate("classes", tmp_path / "x.jsonl", store=task_store, device="cpu")
    with pytest.raises(PeftlabError, match="xls"):
        peftlab.evaluate("classes", tmp_path / "x.jsonl", data_format="xls", store=task_store, device="cpu")


def test_evaluate_and_predict_report_equal_errors(evaluate, task_store):  # noqa: F811
    result = evaluate("answers", test_file(task_store, "classes"))
    assert result.exit_code == 2
    told = one_line(result.output)
    assert "1 problem; nothing was started." in told
    assert "test.jsonl:1 and every other row expected columns question and context" in told

"""Tables as they are exported: a repeated header line, columns without a name, large cells, rejected annotations."""

import json

import pytest

from peftlab.data import load_rows
from peftlab.errors import ErrorCollector
from peftlab.recipe import DataSection
from peftlab.recipe.tasks import TextClassification, TokenClassification
from peftlab.tasks import build_task


@pytest.fixture
def read(tmp_path):
    """Content of a file → the examples and the ledger of its training rows, and the issues."""

    def read(content, name="train.csv", task=None, **section):
        (tmp_path / name).write_text(content, encoding="utf8")
        validation = section.pop("validation", 0.2)
        errors = ErrorCollector()
        data = DataSection(train=str(tmp_path / name), validation=validation, **section)
        task = task or TextClassification(type="text-classification")
        _, examples, ledgers = build_task(task, load_rows(data, errors), errors)
        issues = [str(issue).replace(f"{tmp_path}/", "") for issue in errors.issues]
        return examples, ledgers, issues

    return read


ROWS = [("a film", "good"), ("a book", "bad"), ("a play", "good"), ("a song", "bad"), ("a poem", "good"), ("x", "bad")]


def table(*lines, separator=","):
    return "".join(f"{separator.join(line)}\n" for line in lines)


@pytest.mark.parametrize(
    ("lines", "line", "header"),
    [
        ([("text", "label"), *ROWS[:3], ("text", "label"), *ROWS[3:]], 5, None),
        ([("text", "label"), ("Text", " LABEL"), *ROWS], 2, None),
        ([("text", "label"), *ROWS], 1, ["text", "label"]),
        ([("label", "text"), *ROWS], 1, ["text", "label"]),
    ],
)
@pytest.mark.parametrize(("name", "separator"), [("train.csv", ","), ("train.tsv", "\t")])
def test_repeated_header_line_is_refused_alone(read, lines, line, header, name, separator):
    _, _, issues = read(table(*lines, separator=separator), name, header=header)
    assert len(issues) == 1, issues
    assert issues[0].startswith(f"{name}:{line}: this line holds the column names (")


@pytest.mark.parametrize("empty", [("",), ("", "", ""), (" ", "")])
def test_columns_without_name_and_content_are_left_out(read, empty):
    lines = [("v1", "v2", *empty), *((label, text, *empty) for text, label in ROWS)]
    examples, _, issues = read(table(*lines), columns={"text": "v2", "label": "v1"})
    assert issues == []
    assert sorted(e.text for split in examples.values() for e in split) == sorted(text for text, _ in ROWS)


@pytest.mark.parametrize("spilled", [("more", ""), ("", "more")])
def test_content_without_column_name_is_refused_alone(read, spilled):
    """As the 50 rows of spam.csv whose text goes on in the next column."""
    lines = [("label", "text", "", ""), ("bad", "a book", *spilled), *((label, text, "", "") for text, label in ROWS)]
    _, _, issues = read(table(*lines))
    assert len(issues) == 1
    number = 3 + spilled.index("more")
    assert (
        f"train.csv:2: column {number} has no name but holds 'more'; name every column in the first line" in issues[0]
    )


@pytest.mark.parametrize("content", [",,\na,b,c\n", "text,text\na,b\n"])
def test_names_that_are_none_are_refused(read, content):
    assert "expected distinct column names" in read(content)[2][0]


@pytest.mark.parametrize("length", [131_073, 400_000])
@pytest.mark.parametrize(("name", "separator"), [("train.csv", ","), ("train.tsv", "\t")])
def test_large_cell_is_read(read, length, name, separator):
    examples, _, issues = read(table(("text", "label"), ("y" * length, "good"), *ROWS, separator=separator), name)
    assert issues == []
    assert max(len(e.text) for split in examples.values() for e in split) == length


@pytest.mark.parametrize("bad", ['"bad" x,good', "a,b,c", '"not closed,good'])
def test_unreadable_training_row_has_no_untrue_consequences(read, bad, tmp_path):
    """Labels that only the rest of the file holds are not said to be missing."""
    (tmp_path / "other.csv").write_text(table(("text", "label"), *ROWS))
    content = f"text,label\na film,good\n{bad}\n" + table(*ROWS[1:])
    _, _, issues = read(content, validation=str(tmp_path / "other.csv"))
    assert len(issues) == 1, issues


# --- Prodigy

SPANS = {"spans": [{"start": 0, "end": 3, "label": "PER"}], "_input_hash": 1, "_task_hash": 2}


@pytest.mark.parametrize(
    ("fields", "task"),
    [
        ({"text": "Ada wrote", **SPANS}, TokenClassification(type="token-classification")),
        ({"text": "Ada wrote", "spans": SPANS["spans"]}, TokenClassification(type="token-classification")),
        ({"text": "Ada wrote", "label": "a", "_input_hash": 1}, TextClassification(type="text-classification")),
        ({"text": "Ada wrote", "label": "a"}, TextClassification(type="text-classification")),
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_rejected_and_ignored_rows_are_left_out_and_counted(read, fields, task, form):
    answers = ["accept"] * 4 + ["reject", "ignore", "reject"]
    rows = [{**fields, "answer": answer, "n": n} for n, answer in enumerate(answers)]
    rows += [{**rows[n], "label": "b"} for n in range(2) if "label" in fields]
    content = json.dumps(rows) if form == "json" else "".join(f"{json.dumps(row)}\n" for row in rows)
    columns = {"entities": "spans"} if "spans" in fields else {}
    examples, ledgers, issues = read(content, f"train.{form}", task, columns=columns, validation=0.25)
    assert issues == []
    assert sum(map(len, examples.values())) == len(rows) - 3
    assert ledgers["train"].warnings["rows left out whose answer in Prodigy is reject or ignore"] == 3
    assert ledgers["train"].lost_fraction == 0


@pytest.mark.parametrize("answers", [["yes", "reject"], ["accept", "a city"]])
def test_other_answers_are_not_prodigys(read, answers):
    rows = [{"text": "Ada wrote", "label": "ab"[n % 2], "answer": answers[n % 2]} for n in range(8)]
    examples, ledgers, _ = read("".join(f"{json.dumps(row)}\n" for row in rows), "train.jsonl")
    assert sum(map(len, examples.values())) == 8
    assert ledgers["train"].warnings.keys() == {"column not read: answer"}

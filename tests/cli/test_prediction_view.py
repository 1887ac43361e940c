"""`peftlab predict` for every task: output for people and for programs, input files, and errors."""

import csv
import json
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console
from rich.text import Text

import peftlab
from peftlab.cli.prediction_view import format_answer, format_classes, format_entities, format_number, format_relation
from peftlab.data.markup import parse_markup
from peftlab.tasks.labels.tag_schemes import spans_from_tags
from peftlab.tasks.text_classification import TextClassificationTask
from tests.task_stores import KINDS, one_line, run, task_store, to_json_lines  # noqa: F401  # a fixture

EXAMPLES = {
    "entities": ["Ada Lovelace left Rome ."],
    "characters": ["北京下雨了。"],
    "classes": ["the train was late ."],
    "topics": ["the train was late ."],
    "rating": ["the train was late ."],
    "answers": ["who wrote ?", "--context", "Ada Lovelace wrote to Rome ."],
    "relations": ["<e1>Ada Lovelace</e1> left <e2>Rome</e2> ."],
}
KEYS = {
    "entities": ["text", "entities"],
    "characters": ["text", "entities"],
    "classes": ["text", "labels", "scores"],
    "topics": ["text", "labels", "scores"],
    "rating": ["text", "value"],
    "answers": ["question", "context", "answer", "start", "end", "score"],
    "relations": ["text", "head", "tail", "label", "backward", "score"],
}
INPUTS = {
    "entities": {"text": "Ada Lovelace left Rome ."},
    "characters": {"text": "北京下雨了。"},
    "classes": {"text": "the train was late ."},
    "topics": {"text": "the train was late ."},
    "rating": {"text": "the train was late .", "text_pair": "it rained ."},
    "answers": {"question": "who wrote ?", "context": "Ada Lovelace wrote to Rome ."},
    "relations": {"text": "<e1>Ada Lovelace</e1> left <e2>Rome</e2> ."},
}


@pytest.fixture
def predict(task_store):  # noqa: F811
    def predict(adapters, *arguments, stdin=None):
        return run("predict", adapters, *arguments, "--store", task_store, "--device", "cpu", stdin=stdin)

    return predict


@pytest.fixture
def predict_json(predict):
    """Return the objects that `--json` prints."""

    def predict_json(adapters, *arguments, stdin=None):
        result = predict(adapters, *arguments, "--json", stdin=stdin)
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in result.stdout.splitlines()]

    return predict_json


@pytest.fixture(scope="module")
def bank(task_store):  # noqa: F811
    return peftlab.load(*KINDS, store=task_store, device="cpu")


def render_in_color(data_format):
    """Print text as a terminal with colors does."""
    console = Console(force_terminal=True, color_system="truecolor", width=200)
    with console.capture() as captured:
        console.print(data_format)
    return captured.get()


# --- for people


def test_classes_are_printed_with_probability_bars(predict, predict_json):
    [row] = predict_json("classes", *EXAMPLES["classes"])
    shown = predict("classes", *EXAMPLES["classes"]).output.splitlines()
    assert shown[0] == row["text"]
    assert len(shown) == 1 + len(row["scores"])
    for line, (label, probability) in zip(shown[1:], row["scores"].items(), strict=True):
        mark, name, bar, percent = re.fullmatch(r"  ([● ]) (\S+) +([█░]{24}) +(\S+)%", line).groups()
        assert (name, mark == "●") == (label, label in row["labels"])
        assert float(percent) == pytest.approx(100 * probability, abs=0.06)
        assert bar.count("█") == pytest.approx(24 * probability, abs=0.51)


def test_multi_label_marks_all_labels_or_none():
    task = TextClassificationTask(labels=["a", "b", "c", "d", "e", "f"], multi_label=True)
    scores = dict.fromkeys(task.labels, 0.5)
    everything = format_classes({"text": "x", "labels": task.labels, "scores": scores}, task).plain
    assert everything.count("●") == 6
    nothing = format_classes({"text": "x", "text_pair": "y", "labels": [], "scores": scores}, task).plain.splitlines()
    assert nothing[:2] == ["x", "y"]
    assert len(nothing) == 2 + 5 + 1
    assert nothing[-1] == "  no label"


def test_number_is_printed_with_training_range(predict, predict_json):
    [row] = predict_json("rating", *EXAMPLES["rating"])
    text, line = predict("rating", *EXAMPLES["rating"]).output.splitlines()
    assert text == row["text"]
    value, bar = re.fullmatch(r"  (\S+) ([█░]{24}) 1 to 5 in training", line).groups()
    assert float(value) == pytest.approx(row["value"], abs=0.006)
    assert bar.count("█") == pytest.approx(24 * max(0, min(1, (row["value"] - 1) / 4)), abs=0.51)


@pytest.mark.parametrize(("value", "full"), [(-9.0, 0), (1.0, 0), (3.0, 12), (5.0, 24), (99.0, 24)])
def test_number_outside_range_is_clipped_in_bar(bank, value, full):
    assert format_number({"text": "x", "value": value}, bank.task("rating")).plain.count("█") == full


def test_answer_is_printed_within_context(predict, predict_json):
    [row] = predict_json("answers", *EXAMPLES["answers"])
    question, answer, context = predict("answers", *EXAMPLES["answers"]).output.splitlines()
    assert question == "who wrote ?"
    assert re.fullmatch(rf"  {re.escape(row['answer'])}  \d+\.\d%", answer)
    assert row["context"][row["start"] : row["end"]] == row["answer"]
    start, end = row["start"], row["end"]
    assert context == f"  {row['context'][:start]}⟦{row['answer']}⟧{row['context'][end:]}"


def test_long_context_is_truncated_around_answer():
    fields = {"question": "q", "context": "a" * 100 + " Ada " + "b" * 100, "answer": "Ada", "start": 101, "end": 104}
    shown = format_answer({**fields, "score": 0.5}, None).plain.splitlines()[2]
    assert shown == f"  …{'a' * 60} ⟦Ada⟧ {'b' * 60}…"


def test_missing_answer_is_printed(predict, predict_json):
    [row] = predict_json("answers", "who wrote ?", "--context", "")
    assert (row["answer"], set(row)) == (None, {"adapter", "question", "context", "answer", "score"})
    shown = predict("answers", "who wrote ?", "--context", "").output
    assert re.fullmatch(r"who wrote \?\n  no answer in the context  \d+\.\d%\n", shown)


def test_relation_is_printed_with_arrow(predict, predict_json):
    [row] = predict_json("relations", *EXAMPLES["relations"])
    text, line = predict("relations", *EXAMPLES["relations"]).output.splitlines()
    assert text == row["text"] == "Ada Lovelace left Rome ."
    head, tail = (re.escape(row[role]["text"]) for role in ("head", "tail"))
    assert (row["head"]["text"], row["tail"]["text"]) == ("Ada Lovelace", "Rome")
    label = re.escape(row["label"])
    arrow = {"Other": f"╌╌ {label} ╌╌", "left(e1,e2)": f"── {label} ─▶", "was-in(e2,e1)": f"◀── {label} ──"}
    assert re.fullmatch(rf"  {head}  {arrow[row['label']]}  {tail}  \d+\.\d%", line)


@pytest.mark.parametrize(
    ("label", "backward", "arrow"),
    [
        ("left(e1,e2)", False, "── left(e1,e2) ─▶"),
        ("was-in(e2,e1)", True, "◀── was-in(e2,e1) ──"),
        ("Other", False, "╌╌ Other ╌╌"),
    ],
)
def test_arrow_has_direction_of_relation(bank, label, backward, arrow):
    spans = {"head": {"start": 7, "end": 11, "text": "Rome"}, "tail": {"start": 0, "end": 3, "text": "Ada"}}
    shown = format_relation(
        {"text": "Ada in Rome", **spans, "label": label, "backward": backward, "score": 1.0}, bank.task("relations")
    )
    assert shown.plain == f"Ada in Rome\n  Rome  {arrow}  Ada  100.0%"


def test_entities_are_printed_as_parsable_markup(predict, predict_json):
    texts = ["Ada Lovelace left Rome .", "[sic] Grace Hopper left \\ Paris ]", "🙂 nobody"]
    rows = predict_json("entities", *texts)
    lines = predict("entities", *texts).output.splitlines()
    assert any(row["entities"] for row in rows)
    for line, row, text in zip(lines, rows, texts, strict=True):
        parsed, spans = parse_markup(line)
        assert parsed == text
        assert spans == [{key: entity[key] for key in ("start", "end", "label")} for entity in row["entities"]]


def test_colors_keep_text_unchanged(bank, monkeypatch):
    """Without its escape codes, colored output is the text of uncolored output."""
    rows = [INPUTS[kind] for kind in KINDS]
    answers = bank.predict(rows, adapters=list(KINDS))
    forms = [
        format_entities,
        format_entities,
        format_classes,
        format_classes,
        format_number,
        format_answer,
        format_relation,
    ]
    monkeypatch.setattr("peftlab.cli.prediction_view.out", Console(force_terminal=True, color_system="truecolor"))
    for answer, data_format in zip(answers, forms, strict=True):
        shown = data_format(answer.as_dict(), bank.task(answer.adapter))
        printed = render_in_color(shown)
        assert printed.count("\x1b[") >= (1 if answer.as_dict().get("entities", True) else 0)
        assert Text.from_ansi(printed.rstrip("\n")).plain == shown.plain.rstrip("\n")


def test_entities_in_color_have_labels(monkeypatch, bank):
    monkeypatch.setattr("peftlab.cli.prediction_view.out", Console(force_terminal=True, color_system="truecolor"))
    ada = {"start": 0, "end": 3, "label": "PER", "text": "Ada"}
    rome = {"start": 9, "end": 13, "label": "LOC", "text": "Rome"}
    shown = format_entities({"text": "Ada left Rome .", "entities": [ada, rome]}, bank.task("entities"))
    assert shown.plain == " Ada PER  left  Rome LOC  ."
    styles = {str(span.style) for span in shown.spans}
    assert len(styles) == 4


def test_forced_colors_with_multiple_tasks(task_store):  # noqa: F811
    names = "entities,classes,rating,relations"
    command = [sys.executable, "-m", "peftlab", "predict", names, *EXAMPLES["relations"], "--store", str(task_store)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color"},
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert "\x1b[" in done.stdout
    assert [
        line.split()[0] for line in Text.from_ansi(done.stdout).plain.splitlines() if line[:1].strip()
    ] == names.split(",")


# --- for programs


@pytest.mark.parametrize("kind", KINDS)
def test_json_keys_match_task(predict_json, kind):
    [row] = predict_json(kind, *EXAMPLES[kind])
    assert list(row) == ["adapter", *KEYS[kind]]
    assert row["adapter"] == kind


def test_probabilities_are_sorted_and_sum_to_one(predict_json):
    [row] = predict_json("classes", *EXAMPLES["classes"])
    chances = list(row["scores"].values())
    assert chances == sorted(chances, reverse=True)
    assert sum(chances) == pytest.approx(1, abs=1e-3)
    assert row["labels"] == [next(iter(row["scores"]))]


def test_multi_label_uses_threshold(predict_json):
    for row in predict_json("topics", "the train was late .", "it rained .", "", "nobody came ."):
        assert set(row["labels"]) == {label for label, probability in row["scores"].items() if probability >= 0.3}


@pytest.mark.parametrize("kind", KINDS)
def test_command_matches_python_api(predict_json, bank, kind):
    [row] = predict_json(kind, *EXAMPLES[kind])
    fields = {name: value for name, value in INPUTS[kind].items() if name != "text_pair"}
    [answer] = bank.predict(fields, adapters=kind)
    assert answer.as_dict() == row


# --- rows from files


def write_rows(folder, kind, data_format):
    """Write the rows of a kind to a file, with the columns that `predict` reads."""
    rows = [{name: row[name] for name in row if name in (*KEYS[kind], "text_pair", "tokens")} for row in KINDS[kind][1]]
    file = folder / f"rows.{data_format}"
    if data_format == "jsonl":
        file.write_text(to_json_lines(rows), encoding="utf8")
    elif data_format == "json":
        file.write_text(json.dumps(rows, indent=1), encoding="utf8")
    else:
        with file.open("w", encoding="utf8", newline="") as opened:
            writer = csv.DictWriter(opened, list(rows[0]), delimiter="\t" if data_format == "tsv" else ",")
            writer.writeheader()
            writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    return file, rows


@pytest.mark.parametrize("kind", KINDS)
def test_all_file_formats_give_equal_predictions(predict_json, tmp_path, kind):
    by_form = {}
    for data_format in ("jsonl", "csv", "json"):
        file, rows = write_rows(tmp_path, kind, data_format)
        by_form[data_format] = predict_json(kind, "--file", file)
        assert len(by_form[data_format]) == len(rows)
    assert by_form["jsonl"] == by_form["csv"] == by_form["json"]


def test_text_file_has_one_text_per_line(predict_json, tmp_path):
    (tmp_path / "texts.txt").write_text("\ufeffthe train .\n\n组织 🙂\n", encoding="utf8")
    assert [row["text"] for row in predict_json("classes", "-f", tmp_path / "texts.txt")] == [
        "the train .",
        "",
        "组织 🙂",
    ]
    assert [row["text"] for row in predict_json("classes", stdin="a\n\nb\n")] == ["a", "", "b"]


def test_empty_file_or_input_gives_no_predictions(predict, tmp_path):
    (tmp_path / "texts.txt").write_text("")
    for result in (predict("classes", "--file", tmp_path / "texts.txt"), predict("classes", stdin="")):
        assert (result.exit_code, result.output) == (0, "")


def test_squad_file_is_read(predict_json, tmp_path):
    questions = [{"id": f"q{n}", "question": "who wrote ?", "answers": []} for n in range(2)]
    paragraph = {"context": "Ada Lovelace wrote to Rome .", "qas": questions}
    (tmp_path / "dev.json").write_text(json.dumps({"data": [{"title": "t", "paragraphs": [paragraph]}]}))
    rows = predict_json("answers", "--file", tmp_path / "dev.json")
    assert [(row["question"], row["context"]) for row in rows] == [("who wrote ?", paragraph["context"])] * 2


def test_conll_file_keeps_tokens(predict_json, tmp_path):
    (tmp_path / "rows.conll").write_text("Ada\tO\nleft-over\tO\n\nRome\tO\n")
    assert [row["text"] for row in predict_json("entities", "--file", tmp_path / "rows.conll")] == [
        "Ada left-over",
        "Rome",
    ]


def test_column_option_maps_names(predict_json, predict, tmp_path):
    (tmp_path / "rows.csv").write_text("review,stars\nthe train .,5\n")
    [row] = predict_json("classes", "--file", tmp_path / "rows.csv", "--column", "text=review")
    assert row["text"] == "the train ."
    missing = predict("classes", "--file", tmp_path / "rows.csv", "--column", "text=reviw")
    assert missing.exit_code == 2
    assert "Did you mean 'review'?" in missing.output
    assert predict("classes", "x", "--column", "text").exit_code == 2


# --- contexts and pairs


def test_context_from_text_or_file(predict_json, tmp_path):
    (tmp_path / "context.txt").write_text("Ada Lovelace wrote\nto Rome .\n", encoding="utf8")
    [typed] = predict_json("answers", "who ?", "--context", "Ada Lovelace wrote\nto Rome .")
    [read] = predict_json("answers", "who ?", "--context", f"@{tmp_path / 'context.txt'}")
    assert typed == read
    [first, second] = predict_json("answers", "who ?", "where ?", "--context", "Rome .")
    assert (first["question"], second["question"], first["context"]) == ("who ?", "where ?", "Rome .")


def test_context_is_second_text_of_pair(predict_json, tmp_path):
    [row] = predict_json("rating", "the train .", "--context", "it rained .")
    assert (row["text"], row["text_pair"]) == ("the train .", "it rained .")
    (tmp_path / "rows.jsonl").write_text('{"text": "the train ."}\n')
    assert predict_json("rating", "--file", tmp_path / "rows.jsonl", "--context", "it rained .") == [row]


@pytest.mark.parametrize("kind", ["entities", "relations"])
def test_context_fails_for_single_text_tasks(predict, kind):
    result = predict(kind, "x", "--context", "y")
    assert result.exit_code == 2
    assert f"--context is not an input of {kind} ({KINDS[kind][0]['type']})." in one_line(result.output)


def test_missing_context_file_fails(predict, tmp_path):
    result = predict("answers", "who ?", "--context", f"@{tmp_path / 'absent.txt'}")
    assert (result.exit_code, "No such file" in result.output) == (2, True)


def test_invalid_row_with_context_is_reported_with_line(predict, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "who ?"}\n\n{"question": 3}\n')
    result = predict("answers", "--file", tmp_path / "rows.jsonl", "--context", "Rome .")
    assert result.exit_code == 2
    assert "rows.jsonl:3" in result.output


# --- tags


@pytest.mark.parametrize("scheme", ["iob1", "iob2", "iobes"])
def test_conll_output_parses_to_same_entities(predict, bank, scheme):
    texts = ["Ada Lovelace left Rome .", "", "Grace Hopper left Paris . Alan Turing left London ."]
    printed = predict("entities", *texts, "--conll", scheme).output
    blocks = [block.splitlines() for block in re.split(r"(?<=\n)\n|^\n", printed)] if printed else []
    found = [block for block in blocks if block]
    answers = [answer.prediction for answer in bank.predict(texts, adapters="entities")]
    assert any(answer.entities for answer in answers)
    for block, answer in zip(found, [answer for answer in answers if answer.words], strict=True):
        words, tags = zip(*(line.split("\t") for line in block), strict=True)
        assert list(words) == [answer.text[start:end] for start, end in answer.words]
        expected = [(entity.start, entity.end, entity.label) for entity in answer.entities]
        spans = spans_from_tags(list(tags), scheme)
        assert [(answer.words[a][0], answer.words[b - 1][1], label) for a, b, label in spans] == expected


@pytest.mark.parametrize("kind", ["classes", "rating", "answers", "relations"])
def test_conll_output_fails_for_other_tasks(predict, kind):
    result = predict(kind, *EXAMPLES[kind], "--conll", "iob2")
    assert result.exit_code == 2
    assert f"{kind} predicts no tags; --conll is for token classification." in one_line(result.output)


# --- several adapters of several tasks


def test_adapters_of_multiple_tasks_predict_together(predict, predict_json):
    text = EXAMPLES["relations"][0]
    rows = predict_json("entities,classes,topics,rating,relations", text, text)
    assert [row["adapter"] for row in rows] == ["entities", "classes", "topics", "rating", "relations"] * 2
    assert rows[:5] == rows[5:]
    assert rows[1] == predict_json("classes", text)[0]
    shown = predict("entities,relations", text).output.splitlines()
    assert shown[0].startswith("entities   ")
    assert shown[1].startswith("relations  Ada Lovelace left Rome .")


def test_text_invalid_for_one_task_fails(predict):
    result = predict("classes,answers", "the train .")
    assert result.exit_code == 2
    assert "expected columns question and context" in one_line(result.output)


# --- rows that no task can take, and odd ones that each takes


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("entities", {"txt": "x"}, "expected column tokens, or text; found txt. Is 'txt' the text?"),
        ("entities", {"tokens": 3}, "expected tokens to be a list of strings, found 3"),
        ("classes", {"text": 3}, "expected text to be a string, found 3"),
        ("classes", {"text": "x", "text_pair": ["y"]}, "expected text_pair to be a string, found ['y']"),
        ("rating", {"texts": "x"}, "expected column text; found texts. Is 'texts' the text?"),
        ("rating", {"text": None}, "expected text to be a string, found None"),
        ("answers", {"question": "x"}, "expected columns question and context; found question."),
        ("answers", {"question": "x", "context": 1}, "expected context to be a string, found 1"),
        ("relations", {"text": "x"}, "expected the two spans marked in the text"),
        ("relations", {"text": "<e1>a</e1> <e1>b</e1>"}, "once each, found another <e1>"),
        ("relations", {"text": "ab", "head": {"start": 0, "end": 9}, "tail": {}}, "expected head as {start, end"),
        ("relations", {"text": "ab", "head": {"start": 0, "end": 2}, "tail": {"start": 1, "end": 2}}, "overlap"),
        ("relations", {"tokens": ["a", "b"], "tags": ["B-head", "O"]}, "expected one head and one tail"),
    ],
)
def test_invalid_row_is_reported_with_line(predict, tmp_path, kind, row, expected):
    (tmp_path / "rows.jsonl").write_text(to_json_lines([INPUTS[kind], row]))
    result = predict(kind, "--file", tmp_path / "rows.jsonl")
    assert result.exit_code == 2
    assert "rows.jsonl:2" in result.output
    assert expected in one_line(result.output)
    assert result.stdout == ""


@pytest.mark.parametrize("kind", ["entities", "characters", "classes", "topics", "rating"])
def test_unusual_texts_are_predicted(predict, predict_json, kind):
    odd = ["", " ", "🙂", "👩‍🚀🇫🇷", "\u200b", "组织", "x" * 400, "a\tb  c", "[bold]x[/]", "ا"]
    rows = predict_json(kind, *odd)
    assert [row["text"] for row in rows] == odd
    assert predict(kind, *odd).exit_code == 0


def test_unusual_questions_and_relations_are_predicted(predict_json, predict):
    for context in ("", "🙂", "组织", "x" * 300, "\u200b"):
        [row] = predict_json("answers", "who ?", "--context", context)
        if row["answer"] is not None:
            assert context[row["start"] : row["end"]] == row["answer"]
        assert predict_json("answers", "", "--context", context)
        assert predict("answers", "who ?", "--context", context).exit_code == 0
    for text in ("<e1>🙂</e1><e2>组织</e2>", f"<e1>a</e1> {'far ' * 100}<e2>b</e2>", "<e2> b </e2>[x]<e1>a</e1>"):
        [row] = predict_json("relations", text)
        for role in ("head", "tail"):
            assert row["text"][row[role]["start"] : row[role]["end"]] == row[role]["text"]
        assert predict("relations", text).exit_code == 0


def test_character_adapter_uses_character_tokens(predict, predict_json, bank):
    assert bank.task("characters").state["unit"] == "character"
    assert bank.task("entities").state["unit"] == "word"
    text = "北京 2026年 ok"
    tagged = predict("characters", text, "--conll", "iob2").output.splitlines()
    assert [line.split("\t")[0] for line in tagged if line] == [letter for letter in text if letter != " "]
    words = predict("entities", text, "--conll", "iob2").output.splitlines()
    assert [line.split("\t")[0] for line in words if line] == ["北", "京", "2026", "年", "ok"]
    assert predict_json("characters", text)[0]["text"] == text

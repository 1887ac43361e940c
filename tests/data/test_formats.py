"""Tables, JSON, SQuAD and CoNLL's comment lines: every row at its true line, every broken file told with its place."""

import codecs
import csv
import io
import json
import random
import time

import pytest

from peftlab.data import load_rows
from peftlab.data.loading import detect_format
from peftlab.errors import ErrorCollector
from peftlab.recipe import DataSection

SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Ada",
            "paragraphs": [
                {
                    "context": "Ada Lovelace wrote to London.",
                    "qas": [
                        {"id": "a1", "question": "Who wrote?", "answers": [{"text": "Ada", "answer_start": 0}]},
                        {
                            "id": "a2",
                            "question": "Who left?",
                            "is_impossible": True,
                            "answers": [],
                            "plausible_answers": [{"text": "Ada", "answer_start": 0}],
                        },
                    ],
                },
                {
                    "context": "Grace met Alan.",
                    "qas": [{"id": "b1", "question": "Whom?", "answers": [{"text": "Alan", "answer_start": 10}]}],
                },
            ],
        },
        {
            "title": "Rome",
            "paragraphs": [{"context": "It rained.", "qas": [{"id": "c1", "question": "What?", "answers": []}]}],
        },
    ],
}


@pytest.fixture
def load(tmp_path, write):
    """Rows of a file that is the training split, and what is wrong with it, without the folder."""

    def load(name, content, **section):
        errors = ErrorCollector()
        other = write(
            "other.jsonl", "{}\n".encode(section.get("encoding", "utf8") if isinstance(content, bytes) else "utf8")
        )
        rows = load_rows(DataSection(train=str(write(name, content)), validation=str(other), **section), errors)
        told = [str(issue).replace(f"{tmp_path}/", "") for issue in errors.issues]
        return (rows.splits["train"].rows if "train" in rows.splits else []), told

    return load


@pytest.fixture
def lines(load):
    """The line of every row, as its place says, where nothing is wrong."""

    def lines(name, content, **section):
        rows, told = load(name, content, **section)
        assert told == []
        return [int(row.where.rpartition(":")[2]) for row in rows]

    return lines


@pytest.fixture
def told(load):
    return lambda name, content, **section: load(name, content, **section)[1]


def fields(loaded):
    rows, told = loaded
    assert told == []
    return [row.fields for row in rows]


# --- CSV and TSV


def test_csv_rows_are_those_of_pythons_own_reader(load):
    pieces = ["a", "é", "组织", "🙂", ",", '"', "\n", "\r\n", "\t", " ", "''", "#", "\\"]
    for seed in range(60):
        rng = random.Random(seed)
        table = [["x" + "".join(rng.choices(pieces, k=rng.randrange(6))) for _ in range(3)] for _ in range(8)]
        written = io.StringIO()
        writer = csv.writer(written, lineterminator=rng.choice(["\n", "\r\n"]))
        writer.writerows([["text", "n", "label"], *table])
        expected = list(csv.DictReader(io.StringIO(written.getvalue(), newline="")))
        assert fields(load("train.csv", written.getvalue())) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("t,l\na,b\nc,d\n", [2, 3]),
        ("t,l\r\na,b\r\nc,d\r\n", [2, 3]),
        ("t,l\na,b\nc,d", [2, 3]),
        ("\ufefft,l\na,b\n", [2]),
        ("\n\nt,l\n\n\na,b\n\nc,d\n\n", [6, 8]),
        ('t,l\n"two\nlines",b\nc,d\n"x\n\n\ny",z\ne,f\n', [2, 4, 5, 9]),
        ('"t\nt",l\r\n"two\r\nlines",b\r\nc,d\r\n', [3, 5]),
    ],
    ids=["plain", "crlf", "no-newline", "bom", "blank-lines", "quoted-newlines", "quoted-crlf"],
)
def test_a_csv_row_is_at_the_line_it_begins_at(lines, content, expected):
    assert lines("train.csv", content) == expected


def test_names_of_columns_are_free_of_a_mark_and_of_blanks_around_them(load):
    assert fields(load("train.csv", "\ufeff text , label\n a , b\n")) == [{"text": " a ", "label": " b"}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf8", "UTF-8", "utf_8"])
def test_a_mark_is_no_part_of_the_first_name_however_utf8_is_spelled(load, encoding):
    assert fields(load("train.csv", "\ufefftext,label\na,b\n", encoding=encoding)) == [{"text": "a", "label": "b"}]


def test_a_tsv_takes_quotes_and_commas_as_they_are(load, lines):
    content = 'text\tlabel\n"so, he said\tgood\n\n5" long\tbad\n'
    assert fields(load("train.tsv", content)) == [
        {"text": '"so, he said', "label": "good"},
        {"text": '5" long', "label": "bad"},
    ]
    assert lines("train.tsv", content) == [2, 4]


@pytest.mark.parametrize(("name", "separator"), [("train.csv", ","), ("train.tsv", "\t")])
def test_a_table_without_a_header_line_takes_its_names_from_the_recipe(load, lines, name, separator):
    content = f"a{separator}b\nc{separator}d\n"
    assert fields(load(name, content, header=["text", "label"])) == [
        {"text": "a", "label": "b"},
        {"text": "c", "label": "d"},
    ]
    assert lines(name, content, header=["text", "label"]) == [1, 2]


@pytest.mark.parametrize(
    ("name", "content", "header", "expected"),
    [
        ("train.csv", "t,l\na,b\nc\nd,e,f\n", None, ["3: expected 2 columns (t, l), found 1", "4: … found 3"]),
        ("train.csv", "a,b\n\nc,d,e\n", ["t", "l"], ["3: expected 2 columns (t, l), found 3"]),
        ("train.tsv", "t\tl\na b\n", None, ["2: expected 2 columns (t, l), found 1"]),
        ("train.csv", 't,l\n"a\nb",c\n"d\ne"\n', None, ["4: expected 2 columns (t, l), found 1"]),
        ("train.csv", 't,l\na,b\n"open,c\nd,e\n', None, ["3: expected a row of a table; unexpected end of data"]),
        ("train.csv", 't,l\na,b\n"c"d,e\n', None, ["3: expected a row of a table; ',' expected after '\"'"]),
    ],
    ids=["ragged", "ragged-header", "tsv", "after-quoted-newline", "open-quote", "after-a-quote"],
)
def test_a_broken_row_of_a_table_is_told_with_its_line(told, name, content, header, expected):
    expected = [line.replace("…", "expected 2 columns (t, l),") for line in expected]
    assert told(name, content, header=header) == [f"{name}:{line}" for line in expected]


def test_rows_before_and_after_a_ragged_one_are_read(load):
    rows, told = load("train.csv", "t,l\na,b\nc\nd,e\n")
    assert [row.fields["t"] for row in rows] == ["a", "d"]
    assert len(told) == 1


def test_two_columns_of_one_name_are_told_not_merged(told):
    errors = told("train.csv", "text,label,text\na,b,c\n")
    assert len(errors) == 1
    assert errors[0].startswith("train.csv:1: ")


@pytest.mark.parametrize("name", ["train.csv", "train.tsv"])
def test_a_row_of_empty_cells_is_a_row(load, name):
    separator = "," if name.endswith("csv") else "\t"
    content = f"t{separator}l\n{separator}\na{separator}b\n"
    assert fields(load(name, content)) == [{"t": "", "l": ""}, {"t": "a", "l": "b"}]


# --- JSON


def test_json_rows_are_those_of_pythons_own_reader(load, lines):
    rng = random.Random(7)
    rows = [
        {"text": rng.choice(["é", "[", "]", "{,}", '"', "\n", "组织"]) * n, "n": [n, None, {"x": 1.5}]}
        for n in range(9)
    ]
    for indent in (None, 0, 1, 4):
        text = json.dumps(rows, indent=indent, ensure_ascii=bool(indent))
        assert fields(load("train.json", text)) == json.loads(text)
    places = lines("train.json", json.dumps(rows, indent=2))
    assert places == [2 + 10 * n for n in range(9)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"a": 1}, {"a": 2}]', [1, 1]),
        ('[{"a": 1},\n{"a": 2}]', [1, 2]),
        ('[\n  {\n    "a": 1\n  },\n\n  {\n    "a": 2\n  }\n]\n', [2, 6]),
        ('\ufeff\n[\r\n{"a": 1}\r\n,\r\n{"a": "\\n"}]', [3, 5]),
    ],
    ids=["one-line", "two-lines", "pretty", "bom-crlf"],
)
def test_an_object_of_a_list_is_at_the_line_it_begins_at(lines, content, expected):
    assert lines("train.json", content) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"a": 1},\n{"a":', "2: expected JSON; Expecting value at column 6"),
        ('[{"a": 1},\n{"a": 2}\n', "3: expected ] at the end of the list"),
        ('[{"a": 1},\n', "2: expected ] at the end of the list"),
        ('[{"a": 1},\n{"a" 2}]', "2: expected JSON; Expecting ':' delimiter at column 6"),
        ('[{"a": 1},\n\n[2]]', "3: expected a JSON object, found list"),
        ('"text"', "1: expected a list of objects, [{…}, {…}], found '\"text\"'"),
        ("", "1: expected a list of objects, [{…}, {…}], found ''"),
    ],
    ids=["truncated", "no-end", "no-end-after-comma", "no-colon", "a-list", "a-string", "empty"],
)
def test_a_broken_list_of_objects_is_told_with_its_line(told, content, expected):
    errors = told("train.json", content)
    assert errors[0].startswith(f"train.json:{expected.partition(' at the end')[0]}")
    assert len([issue for issue in errors if "expected" in issue]) == 1


@pytest.mark.parametrize("more", ['\n[{"a": 2}]\n', "\n{}\n", "\nxyzzy\n"])
def test_what_follows_the_list_is_told_not_left_out(told, more):
    errors = told("train.json", f'[{{"a": 1}}]{more}')
    assert len(errors) == 1
    assert errors[0].startswith("train.json:2: expected ")


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_nesting_without_end_is_told_not_a_crash(told, name):
    errors = told(name, "[" * 100_000)
    assert errors
    assert errors[0].startswith(f"{name}:1: expected ")


def test_the_same_rows_hash_alike_from_a_list_and_from_lines(tmp_path, write):
    rows = [{"text": "é ] ,", "label": "a"}, {"label": "b", "text": "x\ny"}]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    written = {"a.jsonl": lines, "b.json": json.dumps(rows, indent=1), "c.json": lines, "d.txt": lines}
    hashes = set()
    for name, content in written.items():
        with ErrorCollector() as errors:
            section = DataSection(train=str(write(name, content)), validation=str(write("v.jsonl", "{}\n")))
            hashes.add(load_rows(section, errors).content_hash)
    assert len(hashes) == 1


# --- SQuAD


def flattened():
    """The rows by hand."""
    ada = {"title": "Ada", "context": "Ada Lovelace wrote to London."}
    grace = {"title": "Ada", "context": "Grace met Alan."}
    rome = {"title": "Rome", "context": "It rained."}
    first, second = SQUAD["data"][0]["paragraphs"][0]["qas"]
    return [
        {**ada, **first},
        {**ada, **second, "answers": []},
        {**grace, "id": "b1", "question": "Whom?", "answers": [{"text": "Alan", "answer_start": 10}]},
        {**rome, "id": "c1", "question": "What?", "answers": []},
    ]


@pytest.mark.parametrize("indent", [None, 2])
def test_squad_is_flattened_to_a_row_a_question(load, indent):
    assert fields(load("train.json", json.dumps(SQUAD, indent=indent))) == flattened()


def test_a_pretty_squad_row_is_at_the_line_of_its_id(lines):
    text = json.dumps(SQUAD, indent=2)
    expected = [n for n, line in enumerate(text.split("\n"), start=1) if '"id"' in line]
    assert lines("train.json", text) == expected
    assert lines("train.json", text.replace("\n", "\r\n")) == expected


def test_a_row_of_squad_on_one_line_is_told_by_its_id(load):
    rows, _ = load("train.json", json.dumps(SQUAD))
    assert [row.where.partition("train.json")[2] for row in rows] == [
        f":1 (question {name})" for name in ("a1", "a2", "b1", "c1")
    ]


@pytest.mark.parametrize("ids", [[12, 1, 2], ["é", "组织", 'a"b']], ids=["numbers", "letters"])
def test_questions_are_found_at_their_lines_whatever_their_ids_are(lines, ids):
    questions = [{"id": name, "question": "q", "answers": []} for name in ids]
    document = {"data": [{"title": "t", "paragraphs": [{"context": "c", "qas": questions}]}]}
    text = json.dumps(document, indent=1, ensure_ascii=False)
    expected = [n for n, line in enumerate(text.split("\n"), start=1) if '"id"' in line]
    assert lines("train.json", text) == expected


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"version": 2}, ":1: expected SQuAD's {version, data: [{title, paragraphs}]}"),
        ({"data": {}}, ":1: expected SQuAD's {version, data: [{title, paragraphs}]}"),
        ([], ":1: expected SQuAD's {version, data: [{title, paragraphs}]}"),
        ({"data": [SQUAD["data"][1], {"title": "x"}]}, ": article 2: expected {title, paragraphs: […]}"),
        ({"data": ["x"]}, ": article 1: expected {title, paragraphs: […]}"),
        (
            {"data": [{"paragraphs": [{"context": "x"}]}]},
            ": article 1, paragraph 1: expected {context, qas: [{id, question, answers}]}",
        ),
        (
            {"data": [{"paragraphs": [{"context": "x", "qas": []}, {"context": "x", "qas": ["x"]}]}]},
            ": article 1, paragraph 2: expected {context, qas: [{id, question, answers}]}",
        ),
    ],
    ids=["no-data", "data-no-list", "a-list", "no-paragraphs", "no-article", "no-qas", "qas-no-objects"],
)
def test_a_broken_squad_file_is_told_with_the_place_and_what_was_expected(told, document, expected):
    assert told("train.json", json.dumps(document), format="squad")[0] == f"train.json{expected}"


def test_a_truncated_squad_file_is_told_with_its_line(told):
    text = json.dumps(SQUAD, indent=2)
    [issue] = [line for line in told("train.json", text[: text.index('"b1"') + 4]) if "holds no rows" not in line]
    line = text[: text.index('"b1"')].count("\n") + 1
    assert issue.startswith(f"train.json:{line}: expected JSON; ")


@pytest.mark.parametrize(("kind", "count"), [("json", 12_000), ("squad", 4_000)])
def test_a_large_file_is_read_in_a_moment(write, kind, count):
    """One pass: a file of ten times the size takes ten times as long, not a hundred times."""
    rows = [{"id": f"q{n}", "question": "what is it?" * 20, "answers": []} for n in range(count)]
    document = rows if kind == "json" else {"data": [{"paragraphs": [{"context": "c", "qas": rows}]}]}
    section = DataSection(train=str(write("train.json", json.dumps(document, indent=1))), validation=0.5)
    began = time.monotonic()
    with ErrorCollector() as errors:
        load_rows(section, errors)
    assert time.monotonic() - began < 2


# --- CoNLL's comment lines


def test_comments_before_a_sentence_give_its_row_other_fields(load, lines):
    content = "# label = founded\n#id=7\nAda\tB-head\nRome\tB-tail\n\nBob\tO\n\n# label = left it\nAda\tB-head\n"
    assert fields(load("train.conll", content)) == [
        {"tokens": ["Ada", "Rome"], "tags": ["B-head", "B-tail"], "label": "founded", "id": "7"},
        {"tokens": ["Bob"], "tags": ["O"]},
        {"tokens": ["Ada"], "tags": ["B-head"], "label": "left it"},
    ]
    assert lines("train.conll", content) == [3, 6, 9]


@pytest.mark.parametrize("content", ["#\tO\nfun\tO\n", "# O\nfun O\n", "Ada\tO\n# a = b\tO\n", "#\t=\tO\n"])
def test_a_hash_may_be_a_token(load, content):
    tokens = [line.split("\t" if "\t" in content else " ")[0] for line in content.splitlines()]
    assert [row["tokens"] for row in fields(load("train.conll", content))] == [tokens]


def test_a_comment_cannot_replace_the_tokens(load):
    assert fields(load("train.conll", "# tokens = x\n# tags = y\nAda O\n")) == [{"tokens": ["Ada"], "tags": ["O"]}]


# --- encodings and the guessing of formats


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-8"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", "text,label\ncafé,b\n"),
        ("train.tsv", "text\tlabel\ncafé\tb\n"),
        ("train.json", '[{"text": "café",\n"label": "b"}]'),
        ("train.jsonl", '{"text": "café", "label": "b"}\n'),
        ("train.txt", '{"text": "café", "label": "b"}\n'),
    ],
)
def test_a_file_is_read_in_the_encoding_that_the_recipe_names(load, name, content, encoding):
    assert fields(load(name, content.encode(encoding), encoding=encoding)) == [{"text": "café", "label": "b"}]


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.json", "train.conll", "train.txt"])
def test_an_unknown_encoding_is_told_once_a_file_and_not_as_a_crash(told, name):
    assert told(name, "a,b\nc,d\n", encoding="utf-9")[0] == (
        "data.encoding: unknown encoding 'utf-9'. utf-8 fits most files."
    )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "ascii", "undefined"])
def test_a_file_in_another_encoding_is_told_not_a_crash(told, encoding):
    errors = told("train.csv", "text,label\ncafé,b\n", encoding=encoding)
    assert errors
    assert "train.csv" in errors[0] or "data.encoding" in errors[0]


@pytest.mark.parametrize("rows", [10, 5000])
def test_a_file_that_is_not_utf8_is_told_with_the_right_byte(told, rows):
    content = b"text,label\n" + b"fine,good\n" * rows + b"caf\xe9,bad\n"
    [issue] = told("train.csv", content)
    line = rows + 2
    assert f"byte {content.index(0xE9)}" in issue or f"train.csv:{line}" in issue


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.json", "[]", "json"),
        ("a.JSON", '\n\n  [{"a": 1}]', "json"),
        ("a.json", '\ufeff[{"a": 1}]', "json"),
        ("a.json", '{"a": 1}\n{"a": 2}\n', "jsonl"),
        ("a.json", json.dumps(SQUAD), "squad"),
        ("a.json", json.dumps(SQUAD, indent=4), "squad"),
        ("a.json", "", "json"),
        ("a.TSV", "text\tlabel\nO hello\tgood\n", "tsv"),
        ("a.tsv", "Ada\tNNP\tB-PER\nleft\tVBD\tO\n\n", "conll"),
        ("a.tsv", "\ufeffAda\tB-PER\nleft\tO\n", "conll"),
        ("a.tsv", "text\tscore\nfine\t-1\nfine\t3\n", "tsv"),
    ],
)
def test_json_and_tsv_are_told_apart_by_what_is_in_them(write, name, content, kind):
    assert detect_format(write(name, content)) == kind


def test_a_mark_of_utf16_is_read_by_its_encoding(write):
    assert detect_format(write("a.json", codecs.BOM_UTF16_LE + '[{"a": 1}]'.encode("utf-16-le")), "utf-16") == "json"


# --- text as it stands

PROSE = "\ufeffAda [wrote](LOC) to x-\r\n\r\n  London . O\r\nit-\n \n\n\nRome O"


def test_a_line_of_plain_text_is_a_row_and_no_mark_in_it_means_anything(load):
    rows, errors = load("train.txt", PROSE, format="text")
    assert errors == []
    found = [(row.fields["text"], row.where.rpartition(":")[2]) for row in rows]
    assert found == [("Ada [wrote](LOC) to x-", "1"), ("  London . O", "3"), ("it-", "4"), ("Rome O", "8")]


def test_a_paragraph_ends_at_a_blank_line(load):
    rows, errors = load("train.txt", PROSE, format="paragraphs")
    assert errors == []
    found = [(row.fields["text"], row.where.rpartition(":")[2]) for row in rows]
    assert found == [("Ada [wrote](LOC) to x-", "1"), ("  London . O\nit-", "3"), ("Rome O", "8")]


@pytest.mark.parametrize("kind", ["text", "paragraphs"])
def test_a_file_of_blank_lines_holds_no_rows(load, kind):
    assert load("train.txt", "\n \n", format=kind)[1] == ["data.train: train.txt holds no rows."]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.txt", "Ada left O\nRome x-\n", "text"),
        ("a.txt", '{"text": "Ada"}\n', "jsonl"),
        ("a.csv", "text\nAda\n", "csv"),
        ("a.tsv", "text\tlabel\nAda\tx\n", "tsv"),
        ("a", "", "text"),
    ],
)
def test_for_tasks_on_plain_text_lines_are_neither_tagged_nor_marked_up(write, name, content, kind):
    assert detect_format(write(name, content), plain_text=True) == kind

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
        messages = [str(issue).replace(f"{tmp_path}/", "") for issue in errors.issues]
        return (rows.splits["train"].rows if "train" in rows.splits else []), messages

    return load


@pytest.fixture
def lines(load):
    """The line of every row, as its place says, where nothing is wrong."""

    def lines(name, content, **section):
        rows, messages = load(name, content, **section)
        assert messages == []
        return [int(row.where.rpartition(":")[2]) for row in rows]

    return lines


@pytest.fixture
def get_errors(load):
    return lambda name, content, **section: load(name, content, **section)[1]


def fields(loaded):
    rows, messages = loaded
    assert messages == []
    return [row.fields for row in rows]


# --- CSV and TSV


def test_csv_rows_match_python_csv(load):
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
def test_csv_row_location_is_its_first_line(lines, content, expected):
    assert lines("train.csv", content) == expected


def test_column_names_are_stripped(load):
    assert fields(load("train.csv", "\ufeff text , label\n a , b\n")) == [{"text": " a ", "label": " b"}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf8", "UTF-8", "utf_8"])
def test_byte_order_mark_is_removed_for_every_utf8_spelling(load, encoding):
    assert fields(load("train.csv", "\ufefftext,label\na,b\n", encoding=encoding)) == [{"text": "a", "label": "b"}]


def test_tsv_keeps_quotes_and_commas(load, lines):
    content = 'text\tlabel\n"so, he said\tgood\n\n5" long\tbad\n'
    assert fields(load("train.tsv", content)) == [
        {"text": '"so, he said', "label": "good"},
        {"text": '5" long', "label": "bad"},
    ]
    assert lines("train.tsv", content) == [2, 4]


@pytest.mark.parametrize(("name", "separator"), [("train.csv", ","), ("train.tsv", "\t")])
def test_table_without_header_uses_recipe_header(load, lines, name, separator):
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
def test_invalid_table_row_reports_line(get_errors, name, content, header, expected):
    expected = [line.replace("…", "expected 2 columns (t, l),") for line in expected]
    assert get_errors(name, content, header=header) == [f"{name}:{line}" for line in expected]


def test_rows_around_ragged_row_are_read(load):
    rows, messages = load("train.csv", "t,l\na,b\nc\nd,e\n")
    assert [row.fields["t"] for row in rows] == ["a", "d"]
    assert len(messages) == 1


def test_duplicate_column_names_are_reported(get_errors):
    errors = get_errors("train.csv", "text,label,text\na,b,c\n")
    assert len(errors) == 1
    assert errors[0].startswith("train.csv:1: ")


@pytest.mark.parametrize("name", ["train.csv", "train.tsv"])
def test_row_of_empty_cells_is_read(load, name):
    separator = "," if name.endswith("csv") else "\t"
    content = f"t{separator}l\n{separator}\na{separator}b\n"
    assert fields(load(name, content)) == [{"t": "", "l": ""}, {"t": "a", "l": "b"}]


# --- JSON


def test_json_rows_match_python_json(load, lines):
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
def test_json_object_location_is_its_first_line(lines, content, expected):
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
def test_invalid_json_list_reports_line(get_errors, content, expected):
    errors = get_errors("train.json", content)
    assert errors[0].startswith(f"train.json:{expected.partition(' at the end')[0]}")
    assert len([issue for issue in errors if "expected" in issue]) == 1


@pytest.mark.parametrize("more", ['\n[{"a": 2}]\n', "\n{}\n", "\nxyzzy\n"])
def test_content_after_json_list_is_reported(get_errors, more):
    errors = get_errors("train.json", f'[{{"a": 1}}]{more}')
    assert len(errors) == 1
    assert errors[0].startswith("train.json:2: expected ")


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_deep_json_nesting_is_reported(get_errors, name):
    errors = get_errors(name, "[" * 100_000)
    assert errors
    assert errors[0].startswith(f"{name}:1: expected ")


def test_json_and_jsonl_have_same_content_hash(tmp_path, write):
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
def test_squad_gives_one_row_per_question(load, indent):
    assert fields(load("train.json", json.dumps(SQUAD, indent=indent))) == flattened()


def test_squad_row_location_is_line_of_id(lines):
    text = json.dumps(SQUAD, indent=2)
    expected = [n for n, line in enumerate(text.split("\n"), start=1) if '"id"' in line]
    assert lines("train.json", text) == expected
    assert lines("train.json", text.replace("\n", "\r\n")) == expected


def test_one_line_squad_row_location_contains_id(load):
    rows, _ = load("train.json", json.dumps(SQUAD))
    assert [row.where.partition("train.json")[2] for row in rows] == [
        f":1 (question {name})" for name in ("a1", "a2", "b1", "c1")
    ]


@pytest.mark.parametrize("ids", [[12, 1, 2], ["é", "组织", 'a"b']], ids=["numbers", "letters"])
def test_squad_lines_are_found_for_any_id(lines, ids):
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
def test_invalid_squad_file_reports_location_and_expectation(get_errors, document, expected):
    assert get_errors("train.json", json.dumps(document), format="squad")[0] == f"train.json{expected}"


def test_truncated_squad_file_reports_line(get_errors):
    text = json.dumps(SQUAD, indent=2)
    [issue] = [line for line in get_errors("train.json", text[: text.index('"b1"') + 4]) if "holds no rows" not in line]
    line = text[: text.index('"b1"')].count("\n") + 1
    assert issue.startswith(f"train.json:{line}: expected JSON; ")


@pytest.mark.parametrize(("kind", "count"), [("json", 12_000), ("squad", 4_000)])
def test_large_file_is_read_fast(write, kind, count):
    """One pass: a file of ten times the size takes ten times as long, not a hundred times."""
    rows = [{"id": f"q{n}", "question": "what is it?" * 20, "answers": []} for n in range(count)]
    document = rows if kind == "json" else {"data": [{"paragraphs": [{"context": "c", "qas": rows}]}]}
    section = DataSection(train=str(write("train.json", json.dumps(document, indent=1))), validation=0.5)
    began = time.monotonic()
    with ErrorCollector() as errors:
        load_rows(section, errors)
    assert time.monotonic() - began < 2


# --- CoNLL's comment lines


def test_conll_comments_add_fields(load, lines):
    content = "# label = founded\n#id=7\nAda\tB-head\nRome\tB-tail\n\nBob\tO\n\n# label = left it\nAda\tB-head\n"
    assert fields(load("train.conll", content)) == [
        {"tokens": ["Ada", "Rome"], "tags": ["B-head", "B-tail"], "label": "founded", "id": "7"},
        {"tokens": ["Bob"], "tags": ["O"]},
        {"tokens": ["Ada"], "tags": ["B-head"], "label": "left it"},
    ]
    assert lines("train.conll", content) == [3, 6, 9]


@pytest.mark.parametrize("content", ["#\tO\nfun\tO\n", "# O\nfun O\n", "Ada\tO\n# a = b\tO\n", "#\t=\tO\n"])
def test_hash_sign_can_be_token(load, content):
    tokens = [line.split("\t" if "\t" in content else " ")[0] for line in content.splitlines()]
    assert [row["tokens"] for row in fields(load("train.conll", content))] == [tokens]


def test_comment_cannot_replace_tokens(load):
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
def test_file_is_read_in_recipe_encoding(load, name, content, encoding):
    assert fields(load(name, content.encode(encoding), encoding=encoding)) == [{"text": "café", "label": "b"}]


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.json", "train.conll", "train.txt"])
def test_unknown_encoding_is_reported_once_per_file(get_errors, name):
    assert get_errors(name, "a,b\nc,d\n", encoding="utf-9")[0] == (
        "data.encoding: unknown encoding 'utf-9'. utf-8 fits most files."
    )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "ascii", "undefined"])
def test_wrong_encoding_is_reported(get_errors, encoding):
    errors = get_errors("train.csv", "text,label\ncafé,b\n", encoding=encoding)
    assert errors
    assert "train.csv" in errors[0] or "data.encoding" in errors[0]


@pytest.mark.parametrize("rows", [10, 5000])
def test_non_utf8_file_reports_byte_in_whole_file(get_errors, rows):
    content = b"text,label\n" + b"fine,good\n" * rows + b"caf\xe9,bad\n"
    [issue] = get_errors("train.csv", content)
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
def test_json_and_tsv_are_detected_by_content(write, name, content, kind):
    assert detect_format(write(name, content)) == kind


def test_utf16_byte_order_mark_is_decoded(write):
    assert detect_format(write("a.json", codecs.BOM_UTF16_LE + '[{"a": 1}]'.encode("utf-16-le")), "utf-16") == "json"


# --- text as it stands

PROSE = "\ufeffAda [wrote](LOC) to x-\r\n\r\n  London . O\r\nit-\n \n\n\nRome O"


def test_plain_text_line_is_one_row_without_markup(load):
    rows, errors = load("train.txt", PROSE, format="text")
    assert errors == []
    found = [(row.fields["text"], row.where.rpartition(":")[2]) for row in rows]
    assert found == [("Ada [wrote](LOC) to x-", "1"), ("  London . O", "3"), ("it-", "4"), ("Rome O", "8")]


def test_paragraph_ends_at_blank_line(load):
    rows, errors = load("train.txt", PROSE, format="paragraphs")
    assert errors == []
    found = [(row.fields["text"], row.where.rpartition(":")[2]) for row in rows]
    assert found == [("Ada [wrote](LOC) to x-", "1"), ("  London . O\nit-", "3"), ("Rome O", "8")]


@pytest.mark.parametrize("kind", ["text", "paragraphs"])
def test_blank_lines_give_no_rows(load, kind):
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
def test_plain_text_tasks_detect_text(write, name, content, kind):
    assert detect_format(write(name, content), plain_text=True) == kind

import datetime
import json
import random
import re

import pytest

from peftlab.data import DataSplits, Ledger, Row, Split, load_rows
from peftlab.data.loading import detect_format
from peftlab.data.markup import parse_markup, write_markup
from peftlab.data.rows import RowError
from peftlab.errors import ErrorCollector
from peftlab.recipe import DataSection


@pytest.fixture
def load(tmp_path, write):
    """Load a data section whose training rows are `content`; give rows and problems, without the folder."""

    def load(name, content, **section):
        errors = ErrorCollector()
        explicit_splits = {"validation": str(write("other.jsonl", "{}\n"))}
        rows = load_rows(DataSection(train=str(write(name, content)), **{**explicit_splits, **section}), errors)
        return rows, [str(issue).replace(f"{tmp_path}/", "") for issue in errors.issues]

    return load


@pytest.fixture
def fields(load):
    """The fields of every training row, where nothing is wrong."""

    def fields(name, content, **section):
        rows, errors = load(name, content, **section)
        assert errors == []
        return [row.fields for row in rows.splits["train"].rows]

    return fields


@pytest.fixture
def get_errors(load):
    """What loading complains about."""
    return lambda name, content, **section: load(name, content, **section)[1]


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """The `datasets` library, with a cache of its own for the test."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return datasets


def parquet(tables, path, columns, **features):
    tables.Dataset.from_dict(columns, features=tables.Features(features) if features else None).to_parquet(str(path))
    return path.read_bytes()


# --- JSON Lines


def test_jsonl_rows_keep_fields_and_lines(load):
    rows, errors = load("train.jsonl", '{"text": "é", "n": 1}\n\n  \n{"text": "b", "x": [null, {"y": 1.5}]}')
    assert errors == []
    assert [row.fields for row in rows.splits["train"].rows] == [
        {"text": "é", "n": 1},
        {"text": "b", "x": [None, {"y": 1.5}]},
    ]
    assert [row.where.rsplit("/")[-1] for row in rows.splits["train"].rows] == ["train.jsonl:1", "train.jsonl:4"]


@pytest.mark.parametrize(
    ("line", "issue"),
    [
        (
            "{bad",
            "expected one JSON object on this line; Expecting property name enclosed in double quotes at column 2",
        ),
        ('{"a": 1} {"b": 2}', "expected one JSON object on this line; Extra data at column 10"),
        ("[1]", "expected a JSON object, found list"),
        ("3", "expected a JSON object, found int"),
        ("null", "expected a JSON object, found NoneType"),
    ],
)
def test_invalid_json_line_reports_location(get_errors, line, issue):
    assert get_errors("train.jsonl", f'{{"a": 1}}\n{line}\n') == [f"train.jsonl:2: {issue}"]


def test_first_five_invalid_rows_are_reported_and_rest_counted(get_errors):
    errors = get_errors("train.jsonl", '{"a": 1}\n' + "[]\n" * 8)
    assert errors[:5] == [f"train.jsonl:{n}: expected a JSON object, found list" for n in range(2, 7)]
    assert errors[5:] == ["… and 3 more rows like these."]


def test_five_invalid_rows_are_all_reported(get_errors):
    assert len(get_errors("train.jsonl", '{"a": 1}\n' + "[]\n" * 5)) == 5


# --- CoNLL

ADA = [
    {"tokens": ["Ada", "Lovelace", "wrote"], "tags": ["B-PER", "I-PER", "O"]},
    {"tokens": ["Rome"], "tags": ["B-LOC"]},
]


@pytest.mark.parametrize(
    "content",
    [
        "Ada\tB-PER\nLovelace\tI-PER\nwrote\tO\n\nRome\tB-LOC\n",
        "Ada B-PER\nLovelace I-PER\nwrote O\n\nRome B-LOC\n",
        "Ada B-PER\nLovelace I-PER\nwrote O\n\nRome B-LOC",
        "Ada NNP B-NP B-PER\nLovelace NNP I-NP I-PER\nwrote VBD O O\n\nRome NNP B-NP B-LOC\n",
        "Ada\tNNP\tB-PER\nLovelace\tNNP\tI-PER\nwrote\tVBD\tO\n\nRome\tNNP\tB-LOC\n",
        "-DOCSTART- -X- O O\n\nAda X B-PER\nLovelace X I-PER\nwrote X O\n\n-DOCSTART- -X- O O\n\nRome X B-LOC\n",
        "-DOCSTART-\nAda X B-PER\nLovelace X I-PER\nwrote X O\n-DOCSTART-\nRome X B-LOC\n",
        "\n\n  \nAda B-PER\nLovelace I-PER\nwrote O\n \t \n\nRome B-LOC\n\t\n\n",
        "Ada\tB-PER\r\nLovelace\tI-PER\r\nwrote\tO\r\n\r\nRome\tB-LOC\r\n",
        "Ada\tB-PER \nLovelace \tI-PER\nwrote\tO\t\n\nRome\tB-LOC\n",
        "\ufeffAda\tB-PER\nLovelace\tI-PER\nwrote\tO\n\nRome\tB-LOC\n",
    ],
    ids=[
        "tab",
        "space",
        "no-newline",
        "four-columns",
        "three-tabs",
        "docstart",
        "docstart-tight",
        "blanks",
        "crlf",
        "stray-blanks",
        "bom",
    ],
)
def test_conll_variants_give_same_rows(fields, content):
    assert fields("train.conll", content) == ADA


def test_tab_separated_conll_token_may_contain_spaces(fields):
    assert fields("train.conll", "New York\tB-LOC\n10 000\tO\n") == [
        {"tokens": ["New York", "10 000"], "tags": ["B-LOC", "O"]}
    ]


def test_conll_row_location_is_line_of_first_token(load):
    rows, _ = load("train.conll", "\n-DOCSTART- O\n\na O\nb O\n\nc O\n")
    assert [row.where.rsplit(":")[-1] for row in rows.splits["train"].rows] == ["4", "7"]


@pytest.mark.parametrize("line", ["Ada", "Ada\t", "\tO", " B-PER "])
def test_conll_line_without_two_columns_reports_location(get_errors, line):
    assert get_errors("train.conll", f"a O\n\nb O\n{line}\n") == [
        f"train.conll:4: expected a token, a tab or space, and a tag; found {line.strip()!r}"
    ]


# --- markup


def test_markup_gives_text_and_character_spans(fields):
    content = r"[Ada Lovelace](PER) met \[sic\] [C. \[x\]](ORG) (see \\) ." + "\nplain (words) here"
    assert fields("train.txt", content, format="markup") == [
        {
            "text": "Ada Lovelace met [sic] C. [x] (see \\) .",
            "entities": [{"start": 0, "end": 12, "label": "PER"}, {"start": 23, "end": 29, "label": "ORG"}],
        },
        {"text": "plain (words) here", "entities": []},
    ]


def test_markup_accepts_windows_line_endings(fields):
    assert fields("train.txt", "[Ada](PER)\r\n\r\n[Rome](LOC)") == [
        {"text": "Ada", "entities": [{"start": 0, "end": 3, "label": "PER"}]},
        {"text": "Rome", "entities": [{"start": 0, "end": 4, "label": "LOC"}]},
    ]


def test_byte_order_mark_is_removed(fields):
    assert fields("train.txt", "\ufeff[Ada](PER)\n")[0]["text"] == "Ada"
    assert fields("train.jsonl", '\ufeff{"a": 1}\n') == [{"a": 1}]


@pytest.mark.parametrize(
    ("line", "column", "found"),
    [
        ("see [1] there", 5, "["),
        ("a ] b", 3, "]"),
        ("[a [b](X)](Y)", 1, "["),
        ("[](X)", 1, "["),
        ("[a]( )", 1, "["),
        ("[a](X Y)", 1, "["),
        ("[a] (X)", 1, "["),
        ("[open", 1, "["),
    ],
)
def test_unescaped_bracket_reports_location_and_escape(get_errors, line, column, found):
    assert get_errors("train.txt", f"fine .\n{line}\n", format="markup") == [
        f"train.txt:2: column {column}: expected [words](LABEL), or \\{found} for a bracket in the text, "
        f"found '{line[column - 1 :]}'"
    ]


def test_markup_round_trips():
    pieces = [*"ab .,()[]\\\"'é中ا", "\\[", "](", "👩‍🚀", "🇫🇷", "\u0301", "\t"]
    for seed in range(500):
        rng = random.Random(seed)
        text = "".join(rng.choices(pieces, k=rng.randrange(8, 40)))
        edges = sorted(rng.sample(range(len(text) + 1), k=2 * rng.randrange(5)))
        spans = [
            (start, end, rng.choice(["PER", "LOC-x", "[a]", "名"]))
            for start, end in zip(*[iter(edges)] * 2, strict=True)
        ]
        parsed, entities = parse_markup(write_markup(text, spans))
        assert (parsed, [(e["start"], e["end"], e["label"]) for e in entities]) == (text, spans)


def test_adjacent_entities_round_trip_in_markup():
    assert write_markup("ab", [(0, 1, "X"), (1, 2, "Y")]) == "[a](X)[b](Y)"
    assert parse_markup("[a](X)[b](Y)")[1] == [
        {"start": 0, "end": 1, "label": "X"},
        {"start": 1, "end": 2, "label": "Y"},
    ]


def test_invalid_markup_raises_row_error():
    with pytest.raises(RowError, match=r"^column 1: expected \[words\]\(LABEL\)"):
        parse_markup("[a")


# --- CSV, Parquet, local folders


def test_csv_rows_match_table(load, tables):
    rows, errors = load("train.csv", 'text,n\n"a, ""b""",1\ncafé,2\n')
    assert errors == []
    assert [row.fields for row in rows.splits["train"].rows] == [
        {"text": 'a, "b"', "n": "1"},
        {"text": "café", "n": "2"},
    ]
    assert [row.where.rsplit("/")[-1] for row in rows.splits["train"].rows] == ["train.csv:2", "train.csv:3"]


def test_parquet_rows_keep_lists(fields, tables, tmp_path):
    content = parquet(
        tables, tmp_path / "made.parquet", {name: [row[name] for row in ADA] for name in ("tokens", "tags")}
    )
    assert fields("train.parquet", content) == ADA


def test_class_ids_become_names(fields, tables, tmp_path):
    names = tables.ClassLabel(names=["O", "B-PER", "I-PER", "B-LOC"])
    content = parquet(
        tables,
        tmp_path / "made.parquet",
        {"tokens": [row["tokens"] for row in ADA], "tags": [[1, 2, 0], [3]], "kind": [1, 0]},
        tokens=tables.List(tables.Value("string")),
        tags=tables.List(names),
        kind=tables.ClassLabel(names=["news", "mail"]),
    )
    assert fields("train.parquet", content) == [{**ADA[0], "kind": "mail"}, {**ADA[1], "kind": "news"}]


@pytest.mark.parametrize("missing", [None, -1])
def test_missing_class_stays_missing(fields, tables, tmp_path, missing):
    kind = tables.ClassLabel(names=["news", "mail"])
    content = parquet(tables, tmp_path / "made.parquet", {"kind": [missing, 1]}, kind=kind)
    assert fields("train.parquet", content) == [{"kind": None}, {"kind": "mail"}]


def test_local_dataset_is_loaded_by_split_names(tables, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, texts in {"train": ["a", "b"], "test": ["c"]}.items():
        (folder / f"{name}.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    errors = ErrorCollector()
    rows = load_rows(DataSection(dataset=str(folder), train="train", validation=0.5, test="test"), errors)
    assert errors.issues == []
    assert {name: len(split.rows) for name, split in rows} == {"train": 1, "validation": 1, "test": 1}
    assert rows.splits["test"].rows == [Row({"text": "c"}, f"{folder}/test row 1")]


def test_missing_dataset_split_is_reported(tables, tmp_path):
    (tmp_path / "train.jsonl").write_text("{}\n{}\n")
    errors = ErrorCollector()
    load_rows(DataSection(dataset=str(tmp_path), train="trian"), errors)
    assert [str(issue) for issue in errors.issues] == [
        f"data.train: dataset '{tmp_path}', split 'trian' cannot be loaded: "
        "Unknown split \"trian\". Should be one of ['train']."
    ]


def test_missing_dataset_is_reported_without_network(tables, tmp_path):
    errors = ErrorCollector()
    load_rows(DataSection(dataset="nobody/nothing", train="train"), errors)
    [issue] = errors.issues
    assert issue.message.startswith("dataset 'nobody/nothing', split 'train' cannot be loaded: ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", "text,n\na,1\nb,2,3,4\n"),
        ("train.csv", b"text,n\ncaf\xe9,1\n"),
        ("train.csv", ""),
        ("train.csv", "text,n\n"),
        ("train.parquet", "no parquet"),
        ("train.parquet", ""),
    ],
    ids=["ragged", "latin-1", "empty", "header-only", "no-parquet", "empty-parquet"],
)
def test_unreadable_table_reports_file(get_errors, tables, name, content):
    errors = get_errors(name, content)
    assert len(errors) == 1
    assert name in errors[0]
    assert "\n" not in errors[0]


# --- formats, files, columns


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.jsonl", "[x](PER)", "jsonl"),
        ("a.CONLL", "", "conll"),
        ("a.iob", "", "conll"),
        ("a.bio", "", "conll"),
        ("a.tsv", "", "tsv"),
        ("a.tsv", "Ada\tB-PER\ncame\tO\n", "conll"),
        ("a.tsv", "text\tlabel\nfine\tgood\n", "tsv"),
        ("a.json", '[{"a": 1}]', "json"),
        ("a.json", '[\n {"a": 1}]', "json"),
        ("a.json", '{"version": "v2.0", "data": []}', "squad"),
        ("a.json", '{\n "data": []\n}', "squad"),
        ("a.csv", "", "csv"),
        ("a.parquet", "", "parquet"),
        ("a.txt", '\n{"a": 1}\n {"b": 2}\n', "jsonl"),
        ("a.json", '{"a": 1}\n', "jsonl"),
        ("a.txt", "-DOCSTART- -X- O O\n\nAda NNP B-PER\ncame VBD O\n", "conll"),
        ("a.txt", "Ada\tB-PER\ncame\tO\n", "conll"),
        ("train", "EU S-ORG\nrejects O\n", "conll"),
        ("a.txt", "[Ada](PER) came .\nO wonder .\n", "markup"),
        ("a.txt", "Nobody came .\n", "markup"),
        ("a.txt", "", "markup"),
    ],
)
def test_format_is_detected_by_suffix_or_first_lines(write, name, content, kind):
    assert detect_format(write(name, content)) == kind


def test_explicit_format_overrides_suffix(fields):
    assert fields("train.csv", '{"a": 1}\n', format="jsonl") == [{"a": 1}]


def test_columns_are_renamed(fields):
    content = '{"words": ["a"], "ner": ["O"], "id": 3}\n' * 2
    assert fields("train.jsonl", content, validation=0.5, columns={"tokens": "words", "tags": "ner"}) == [
        {"tokens": ["a"], "tags": ["O"], "id": 3}
    ]


def test_columns_can_be_swapped(fields):
    content, columns = '{"tokens": 1, "tags": 2}\n' * 2, {"tokens": "tags", "tags": "tokens"}
    assert fields("train.jsonl", content, validation=0.5, columns=columns) == [{"tags": 1, "tokens": 2}]


@pytest.mark.parametrize("row", ['{"words": 1, "tokens": 2}\n', '{"tokens": 2, "words": 1}\n'])
def test_renamed_column_replaces_existing_column(fields, row):
    assert fields("train.jsonl", row * 2, validation=0.5, columns={"tokens": "words"})[0]["tokens"] == 1


def test_missing_column_reports_suggestion(get_errors, write):
    other = str(write("validation.jsonl", '{"words": 1, "tags": 2}\n'))
    content = '{"words": 1, "tags": 2}\n'
    assert get_errors("train.jsonl", content, validation=other, columns={"tokens": "wrods"}) == [
        f"data.columns.tokens: no column 'wrods' in {name}:1. Did you mean 'words'? Available columns: tags, words."
        for name in ("train.jsonl", "validation.jsonl")
    ]


def test_missing_file_reports_suggestion(write, tmp_path):
    write("train.txt", "a")
    errors = ErrorCollector(locations={"data.train": "r.yaml:7"})
    load_rows(DataSection(train=str(tmp_path / "trian.txt")), errors)
    assert [str(issue) for issue in errors.issues] == [
        f"r.yaml:7  data.train: no such file: {tmp_path}/trian.txt. "
        "Did you mean 'train.txt'? Available files: train.txt."
    ]


def test_missing_folder_is_reported(tmp_path):
    errors = ErrorCollector()
    load_rows(DataSection(train=str(tmp_path / "no" / "train.txt")), errors)
    assert [str(issue) for issue in errors.issues] == [
        f"data.train: no such file: {tmp_path}/no/train.txt. There is no folder {tmp_path}/no."
    ]


@pytest.mark.parametrize("form", ["auto", "conll", "jsonl", "markup", "csv", "parquet"])
def test_folder_instead_of_file_is_reported(tables, tmp_path, form):
    errors = ErrorCollector()
    load_rows(DataSection(train=str(tmp_path), format=form), errors)
    [issue] = errors.issues
    assert (
        str(issue) == f"data.train: {tmp_path} is a folder. Name a file in it, or load it as a dataset: data.dataset."
    )


@pytest.mark.parametrize("name", ["train.txt", "train.jsonl", "train.conll"])
def test_non_utf8_file_reports_byte(get_errors, name):
    assert get_errors(name, b"caf\xe9 O\n") == [
        f"data.train: {name} is not utf-8 text (byte 3). "
        "Name the encoding it has, as in data.encoding: latin-1, or convert the file to UTF-8."
    ]


@pytest.mark.parametrize("name", ["train.txt", "train.jsonl", "train.conll"])
@pytest.mark.parametrize("content", ["", "\n \n"])
def test_file_without_rows_is_reported(get_errors, name, content):
    assert get_errors(name, content) == [f"data.train: {name} holds no rows."]


# --- splits and their hash

NUMBERS = "".join(f'{{"n": {n}}}\n' for n in range(40))


def load_splits(load, **section):
    rows, errors = load("train.jsonl", NUMBERS, **section)
    assert errors == []
    return {name: [row.fields["n"] for row in split.rows] for name, split in rows}


@pytest.mark.parametrize("seed", [0, 13, 99])
def test_random_splits_are_disjoint_complete_and_ordered(load, seed):
    splits = load_splits(load, validation=0.25, test=0.1, seed=seed)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 26, "validation": 10, "test": 4}
    assert sorted(n for rows in splits.values() for n in rows) == list(range(40))
    for rows in splits.values():
        assert rows == sorted(rows)


def test_random_splits_depend_on_seed(load):
    first = load_splits(load, validation=0.25, seed=1)
    assert load_splits(load, validation=0.25, seed=1) == first
    assert load_splits(load, validation=0.25, seed=2) != first


def test_random_split_is_not_contiguous(load):
    validation = load_splits(load, validation=0.25, seed=1)["validation"]
    assert max(validation) - min(validation) >= len(validation)


def test_tiny_fraction_takes_one_row(load):
    assert len(load_splits(load, validation=0.001)["validation"]) == 1


def test_splits_have_source_and_test_is_optional(load, tmp_path):
    rows, _ = load("train.jsonl", NUMBERS, validation=0.25, seed=5)
    assert {name: split.source for name, split in rows} == {
        "train": "train.jsonl",
        "validation": "25% of the training rows, seed 5",
    }


@pytest.mark.parametrize(("count", "shares"), [(1, {"validation": 0.1}), (10, {"validation": 0.5, "test": 0.5})])
def test_fractions_without_training_rows_are_refused(get_errors, count, shares):
    assert get_errors("train.jsonl", "{}\n" * count, **shares) == [
        f"data: the shares of {' and '.join(shares)} leave no training rows."
    ]


def hash_of(**splits):
    return DataSplits(
        {name: Split([Row(fields, "x") for fields in rows], "x") for name, rows in splits.items()}
    ).content_hash


def test_content_hash_ignores_name_and_format(load, tables, tmp_path):
    conll = "Ada\tB-PER\nLovelace\tI-PER\nwrote\tO\n\nRome\tB-LOC\n"
    jsonl = "".join(json.dumps(dict(reversed(row.items()))) + "\n" for row in ADA)
    table = parquet(
        tables, tmp_path / "made.parquet", {name: [row[name] for row in ADA] for name in ("tokens", "tags")}
    )
    files = {"a.conll": conll, "b.txt": conll.replace("\t", " X "), "c.jsonl": jsonl, "d.parquet": table}
    hashes = {load(name, content)[0].content_hash for name, content in files.items()}
    assert hashes == {hash_of(train=ADA, validation=[{}])}


@pytest.mark.parametrize(
    "other",
    [
        {"train": [{"tokens": ["a"], "tags": ["B-LOC"]}, {"n": 1}]},
        {"train": [{"n": 1}, {"tokens": ["a"], "tags": ["B-PER"]}]},
        {"train": [{"tokens": ["a"], "tags": ["B-PER"]}], "test": [{"n": 1}]},
        {"train": [{"tokens": ["a"], "tags": ["B-PER"]}]},
    ],
    ids=["tag", "order", "split", "missing-row"],
)
def test_content_hash_depends_on_data(other):
    assert hash_of(**other) != hash_of(train=[{"tokens": ["a"], "tags": ["B-PER"]}, {"n": 1}])


def test_content_hash_supports_dates(load, tables, tmp_path):
    columns = {"text": ["a", "b"], "day": [datetime.datetime(2026, 1, 1), datetime.datetime(2026, 1, 2)]}
    rows, errors = load("train.parquet", parquet(tables, tmp_path / "made.parquet", columns))
    assert errors == []
    assert re.fullmatch(r"[0-9a-f]{64}", rows.content_hash)


# --- the ledger


def test_lost_fraction_is_maximum_of_rows_and_targets():
    ledger = Ledger(read=10, targets=20, num_lost_targets=8)
    ledger.drop("empty")
    ledger.drop("empty")
    ledger.drop("other")
    assert ledger.dropped == {"empty": 2, "other": 1}
    assert ledger.lost_fraction == pytest.approx(0.4)
    ledger.num_lost_targets = 2
    assert ledger.lost_fraction == pytest.approx(0.3)
    assert Ledger().lost_fraction == 0.0


def test_ledger_ignores_zero_counts():
    ledger = Ledger()
    ledger.add_warning("widened", 0)
    ledger.add_warning("joined", 2)
    ledger.add_warning("joined")
    assert ledger.as_dict()["notes"] == {"joined": 3}


def test_ledger_round_trips_through_published_keys():
    ledger = Ledger(source="f", read=9, used=7, truncated=2, targets=9, num_lost_targets=1, warnings={"joined": 3})
    counts = ledger.as_dict()
    assert (counts["cut"], counts["targets_lost"], counts["notes"]) == (2, 1, {"joined": 3})
    assert Ledger.from_dict(counts) == ledger

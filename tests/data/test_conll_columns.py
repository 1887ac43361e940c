"""Files with one word a line or row: columns that move, numbers before tokens, other spellings of tags."""

import pytest

from peftlab.data import load_rows
from peftlab.data.loading import detect_format
from peftlab.errors import ErrorCollector
from peftlab.recipe import DataSection
from peftlab.recipe.tasks import TokenClassification
from peftlab.tasks import build_task

LENA = [(["Lena", "saw", "Porto"], [(0, 1, "PER"), (2, 3, "LOC")]), (["Rain"], [])]


@pytest.fixture
def read(tmp_path):
    """Content → the tokens and spans of each row, and the issues."""

    def read(content, name="train.conll", scheme="auto", **section):
        (tmp_path / name).write_text(content, encoding="utf8")
        errors = ErrorCollector()
        data = DataSection(train=str(tmp_path / name), validation=str(tmp_path / name), **section)
        task = TokenClassification(type="token-classification", tag_scheme=scheme)
        _, examples, _ = build_task(task, load_rows(data, errors), errors)
        issues = list(dict.fromkeys(str(issue).replace(f"{tmp_path}/", "") for issue in errors.issues))
        return [(example.tokens(), list(example.spans)) for example in examples["train"]], issues

    return read


def lines(*rows, separator="\t"):
    return "\n".join(separator.join(row) if row else "" for row in rows) + "\n"


WORDS = [("Lena", "B-PER"), ("saw", "O"), ("Porto", "B-LOC"), (), ("Rain", "O")]


def with_columns(make, separator="\t"):
    """Each word's columns by `make(number in the sentence, number in the file, word, tag)`."""
    made, number, total = [], 0, 0
    for row in WORDS:
        made.append(make(number, total, *row) if row else ())
        number, total = (number + 1, total + 1) if row else (0, total)
    return lines(*made, separator=separator)


@pytest.mark.parametrize(
    "content",
    [
        with_columns(lambda i, n, word, tag: (str(i), word, tag)),
        with_columns(lambda i, n, word, tag: (str(i + 1), word, tag), " "),
        with_columns(lambda i, n, word, tag: (str(n), word, "NN", tag)),
        with_columns(lambda i, n, word, tag: (str(i + 1), word, "", tag)),
        with_columns(lambda i, n, word, tag: (word, "", tag)),
        with_columns(lambda i, n, word, tag: (word, "NN" if i else "", "", tag)),
        with_columns(lambda i, n, word, tag: (word, "_", "_", tag), " "),
        with_columns(lambda i, n, word, tag: (word, tag, "lemma")),
        with_columns(lambda i, n, word, tag: (word, "B-NP", tag)),
        with_columns(lambda i, n, word, tag: (word, tag, "", "")),
        "# id 5239d808\tdomain=en\n" + with_columns(lambda i, n, word, tag: (word, "_", "_", tag), " "),
        "# just a remark\n# newdoc\n" + with_columns(lambda i, n, word, tag: (word, tag)),
    ],
)
def test_token_and_tag_are_found_among_columns(read, content):
    assert read(content) == (LENA, [])


def test_comment_of_multiconer_gives_id_and_domain(tmp_path):
    (tmp_path / "a.conll").write_text(
        "# id 52-39\tdomain=en\nLena _ _ B-PER\nsaw _ _ O\n\n# id 7\tdomain=de\nPorto _ _ O\n"
    )
    with ErrorCollector() as errors:
        rows = load_rows(DataSection(train=str(tmp_path / "a.conll"), validation=0.5), errors)
    found = sorted((row.fields["id"], row.fields["domain"]) for _, split in rows for row in split.rows)
    assert found == [("52-39", "en"), ("7", "de")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (with_columns(lambda i, n, word, tag: (str(i + 1), word, tag, "O")), "columns 3 and 4 both hold tags"),
        (with_columns(lambda i, n, word, tag: (word, tag, tag)), "columns 2 and 3 both hold tags"),
        (with_columns(lambda i, n, word, tag: (str(7 * n + 3), word, tag)), "column 1 holds numbers such as 3"),
    ],
)
def test_columns_that_may_be_another_are_refused_with_the_key(read, content, message):
    _, issues = read(content)
    assert f"train.conll: {message}" in " ".join(issues)
    assert "data.header: [id, tokens, tags]" in issues[0]


@pytest.mark.parametrize(
    ("content", "section"),
    [
        (with_columns(lambda i, n, word, tag: (str(i), word, tag, "O")), {"header": ["id", "tokens", "tags", "inner"]}),
        (with_columns(lambda i, n, word, tag: (tag, "x", word)), {"header": ["tags", "x", "tokens"]}),
        (
            with_columns(lambda i, n, word, tag: (str(9 - n), word, tag), " "),
            {"header": ["n", "word", "ner"], "columns": {"tokens": "word", "tags": "ner"}},
        ),
    ],
)
def test_header_chooses_columns(read, content, section):
    assert read(content, **section) == (LENA, [])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("saw\t\tO", "expected 2 columns, found 3: 'saw  O'"),
        ("saw", "expected a token, a tab or space, and a tag; found 'saw'"),
        ("\tO", "expected a token, a tab or space, and a tag; found 'O'"),
    ],
)
def test_line_with_another_number_of_columns_is_refused(read, bad, message):
    _, issues = read(f"Lena\tB-PER\n{bad}\nPorto\tB-LOC\n")
    assert issues == [f"train.conll:2: {message}"]


@pytest.mark.parametrize("token", ["\u00a0", "10\u00a0000", "\u3000x"])
def test_other_blanks_are_part_of_a_token(read, token):
    rows, issues = read(f"Lena B-PER\n{token} O\nPorto B-LOC\n")
    assert issues == []
    assert rows[0][0] == ["Lena", token, "Porto"]


@pytest.mark.parametrize("names", ["Word\tTag", "tokens\tner_tags", "TOKEN\tPOS\tLabel"])
@pytest.mark.parametrize("prefix", ["B-", ""])
def test_header_line_is_refused(read, names, prefix):
    """Without prefixes, the name of the tags would be an entity type."""
    pos = "\tNN" * (names.count("\t") - 1)
    content = f"{names}\nLena{pos}\t{prefix}PER\nsaw{pos}\tO\nit{pos}\tO\n"
    assert read(content)[1] == ["train.conll:1: this line holds the column names, not a token and its tag; delete it"]


# --- spellings of tags


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("B-P M-P E-P O S-L", [(0, 3, "P"), (4, 5, "L")]),
        ("B-P I-P M-P E-P W-L", [(0, 4, "P"), (4, 5, "L")]),
        ("S-P S-P O B-L E-L", [(0, 1, "P"), (1, 2, "P"), (3, 5, "L")]),
        (
            "person-actor person-actor O art-film location",
            [(0, 2, "person-actor"), (3, 4, "art-film"), (4, 5, "location")],
        ),
        ("PER O PER PER LOC", [(0, 1, "PER"), (2, 4, "PER"), (4, 5, "LOC")]),
        ("I-PER O I-PER I-PER I-LOC", [(0, 1, "PER"), (2, 4, "PER"), (4, 5, "LOC")]),
    ],
)
@pytest.mark.parametrize("name", ["train.txt", "train.bmes", "train.iob2", "train.bioes"])
def test_spellings_of_tags(read, tags, spans, name):
    content = "".join(f"w{i}\t{tag}\n" for i, tag in enumerate(tags.split()))
    rows, issues = read(f"{content}\nend\tO\n", name=name)
    assert issues == []
    assert rows[0][1] == spans


@pytest.mark.parametrize("tags", ["b-per O", "B_PER O", "PER-B O", "B-PER LOC", "DET NOUN", "B:PER O"])
def test_tags_that_cannot_be_meant_are_refused(read, tags):
    content = "".join(f"w{i}\t{tag}\n" for i, tag in enumerate(tags.split()))
    _, issues = read(content + "\nend\t" + tags.split()[-1] + "\n")
    assert any("expected a tag such as O, B-PER or I-PER" in i or "no tag is O or has a prefix" in i for i in issues)


@pytest.mark.parametrize(
    ("scheme", "tags", "is_valid"),
    [("bmes", "B-P M-P E-P", True), ("bmes", "B-P M-P O", False), ("io", "DET NOUN NOUN", True)],
)
def test_named_scheme_is_checked(read, scheme, tags, is_valid):
    _, issues = read("".join(f"w{i}\t{tag}\n" for i, tag in enumerate(tags.split())), scheme=scheme)
    assert (issues == []) is is_valid


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("In\tO\nthe\tO\nAlps\tlocation-mountain\n", "conll"),
        ("Alps\tlocation-mountain\nand\tO\nRome\tlocation\nAda\tperson\nBob\tperson\n", "conll"),
        ("# id 1\tdomain=en\nAda _ _ B-PER\n", "conll"),
        ("good film O\nbad\nnice one here\n", "markup"),
    ],
)
def test_words_in_lines_are_detected(tmp_path, content, kind):
    (tmp_path / "train.txt").write_text(content)
    assert detect_format(tmp_path / "train.txt") == kind


# --- tables with one word a row

KAGGLE = [
    ("Sentence #", "Word", "POS", "Tag"),
    ("Sentence: 1", "Lena", "NNP", "B-PER"),
    ("", "saw", "VBD", "O"),
    ("", "Porto", "NNP", "B-LOC"),
    ("Sentence: 2", "Rain", "NN", "O"),
]
MAPPED = {"tokens": "Word", "tags": "Tag"}


def filled(rows):
    """The sentence on every row, as other exports have it."""
    made = [rows[0]]
    for row in rows[1:]:
        made.append((row[0] or made[-1][0], *row[1:]))
    return made


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", lines(*KAGGLE, separator=",")),
        ("train.tsv", lines(*KAGGLE)),
        ("train.csv", lines(*filled(KAGGLE), separator=",")),
        (
            "train.jsonl",
            "".join(
                f'{{"Sentence #": {n}, "Word": "{w}", "Tag": "{t}"}}\n'
                for n, w, t in [(1, "Lena", "B-PER"), (1, "saw", "O"), (1, "Porto", "B-LOC"), (2, "Rain", "O")]
            ),
        ),
    ],
)
def test_rows_of_a_sentence_become_one(read, name, content):
    assert read(content, name=name, group_by="Sentence #", columns=MAPPED) == (LENA, [])


@pytest.mark.parametrize("separator", [",", "\t"])
def test_one_word_a_row_is_refused_without_the_sentence(read, separator):
    content = lines(*KAGGLE, ("", "fell", "VBD", "O"), separator=separator)
    _, issues = read(content, name="train.csv" if separator == "," else "train.tsv", columns=MAPPED)
    assert "every row holds one word" in issues[0]
    assert "data.group_by. Available columns: Sentence #, POS." in issues[0]


@pytest.mark.parametrize("content", ["w O\n\n" * 5, "Ada B-PER\n\nw O\n\nx O\n\ny O\n\nRome B-LOC\n"])
def test_sentences_of_one_word_are_refused(read, content):
    assert "every row holds one word" in read(content)[1][0]


def test_sentence_that_comes_back_is_refused(read):
    content = lines(("n", "Word", "Tag"), ("1", "a", "O"), ("2", "b", "O"), ("1", "c", "O"), separator=",")
    _, issues = read(content, name="train.csv", group_by="n", columns=MAPPED)
    assert "n '1' is here again, after other rows; first at train.csv:2. Sort the rows" in issues[0]


def test_unknown_sentence_column_is_reported(read):
    _, issues = read(lines(*KAGGLE, separator=","), name="train.csv", group_by="Sentence", columns=MAPPED)
    assert "no column 'Sentence' in train.csv:2. Did you mean 'Sentence #'?" in issues[0]

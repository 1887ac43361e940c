"""Labels as they stand in files: numbers, "no label", several in a cell. A number is never a guess."""

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from peftlab.data import DataSplits, Ledger, Row, Split, load_rows
from peftlab.errors import ErrorCollector
from peftlab.recipe import DataSection
from peftlab.recipe.tasks import TextClassification, TokenClassification
from peftlab.store import TaskInfo
from peftlab.tasks import build_task, read_examples, restore_task
from peftlab.tasks.labels.label_cells import split_labels


def rows(*fields):
    return Split([Row(one, f"f:{number}") for number, one in enumerate(fields, start=1)], "f")


def texts(*labels):
    return rows(*({"text": f"text {number}", "label": label} for number, label in enumerate(labels)))


def built(section, drop_blank=False, **splits):
    errors = ErrorCollector()
    return *build_task(section, DataSplits(splits), errors, drop_blank=drop_blank), [str(i) for i in errors.issues]


def classes(**options):
    return TextClassification(type="text-classification", **options)


def labels_of(examples):
    return [example.labels for example in examples]


# --- numbers


@pytest.mark.parametrize("values", [[0, 1], ["1", "0"], [2, 1]])
def test_number_is_refused_against_names_that_were_learned(values):
    task, _, _, issues = built(classes(), train=texts("ham", "spam", "ham"))
    assert issues == []
    restored = TaskInfo.from_task(task).build()
    examples = read_examples(restored, texts(*values), Ledger(), ErrorCollector())
    assert labels_of(examples) == [(str(value),) for value in values]  # unknown to the adapter, which is an error
    *_, issues = built(classes(), train=texts("ham", "spam"), validation=texts(*values))
    assert all("only if task.labels lists the classes in their order" in issue for issue in issues)
    assert len(issues) == 2


@pytest.mark.parametrize("value", [1, "1"])
def test_number_is_index_of_listed_labels_also_after_publishing(value):
    task, *_, issues = built(classes(labels=["spam", "ham"]), train=texts("ham", "spam"))
    restored = TaskInfo.from_task(task).build()
    assert issues == []
    assert labels_of(read_examples(restored, texts(value), Ledger(), ErrorCollector())) == [("ham",)]


def test_adapter_of_an_earlier_version_does_not_guess():
    task = restore_task("text-classification", ["ham", "spam"], {"multi_label": False, "threshold": 0.5}, {})
    assert task.read(Row({"text": "x", "label": 1}, "f:1")).labels == ("1",)


@pytest.mark.parametrize("names", [["spam", "ham"], ["c", "a", "b"], ["no", "yes"]])
def test_class_names_of_a_file_come_before_learned_labels(names, tmp_path):
    """Their order in the file is not that of the alphabet."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    table = Dataset.from_dict({"text": list(names), "label": list(range(len(names)))}, features=features)
    table.to_parquet(tmp_path / "rows.parquet")
    with ErrorCollector() as errors:
        loaded = load_rows(DataSection(train=str(tmp_path / "rows.parquet"), validation=0.3), errors)
    assert all(row.fields["label"] == row.fields["text"] for _, split in loaded for row in split.rows)


@pytest.mark.parametrize(
    ("names", "numbers", "tags"),
    [
        (["O", "B-PER", "I-PER", "B-LOC"], [1, 2, 0, 3], ["PER", "LOC"]),
        (["B-LOC", "I-LOC", "O"], [0, 1, 2, 0], ["LOC", "LOC"]),
        (["O", "PER", "LOC"], "[1, 1, 0, 2]", ["PER", "LOC"]),
        (["O", "B-x", "M-x", "E-x", "S-x"], "1 3 0 4", ["x", "x"]),
    ],
)
def test_number_tags_are_indices_of_the_listed_tags(names, numbers, tags):
    section = TokenClassification(type="token-classification", labels=names)
    row = {"tokens": "a b c d", "tags": numbers}
    task, examples, _, issues = built(section, train=rows(row, row))
    assert issues == []
    assert [kind for _, _, kind in examples["train"][0].spans] == tags
    assert examples["train"][0].spans[0][:2] == (0, 2)
    restored = TaskInfo.from_task(task).build()
    assert restored.labels == task.labels
    [example] = read_examples(restored, rows(row), Ledger(), ErrorCollector())
    assert example.spans == examples["train"][0].spans


@pytest.mark.parametrize("labels", [None, ["PER", "LOC"], ["O", "B-PER", "LOC"]])
def test_number_tags_without_their_names_are_refused(labels):
    section = TokenClassification(type="token-classification", labels=labels)
    *_, issues = built(section, train=rows({"tokens": ["a", "b"], "tags": [0, 1]}))
    assert any("in the order of their numbers, as in" in issue for issue in issues)


@pytest.mark.parametrize("number", [-100, -1, 3])
def test_number_tag_outside_the_list_is_refused(number):
    section = TokenClassification(type="token-classification", labels=["O", "B-PER", "I-PER"])
    *_, issues = built(section, train=rows({"tokens": ["a", "b"], "tags": [1, number]}))
    assert f"f:1: expected tags to be numbers from 0 to 2, as task.labels has, found {number}" in issues


# --- no label


@pytest.mark.parametrize(
    ("labels", "missing"),
    [
        (["entailment", "neutral", "-", "entailment"], 1),
        ([0, 1, -1, 2, -1], 2),
        (["0", "1", "-1"], 1),
        (["yes", "no", None], 1),
        (["yes", "no", "", " "], 2),
    ],
)
def test_missing_label_is_refused_or_left_out_on_request(labels, missing):
    *_, issues = built(classes(), train=texts(*labels))
    assert issues
    assert all("data.drop_blank: true (or --drop-blank) leaves such rows out" in issue for issue in issues)
    task, examples, ledgers, issues = built(classes(), drop_blank=True, train=texts(*labels))
    assert issues == []
    assert not {"-", "-1", ""} & set(task.labels)
    assert len(examples["train"]) == len(labels) - missing
    assert ledgers["train"].dropped == {"without text or label (data.drop_blank)": missing}


@pytest.mark.parametrize(
    ("labels", "listed"), [([-1, 1, -1], None), (["+", "-", "+"], None), ([-1, 0, 1], ["-1", "0", "1"])]
)
def test_minus_is_a_class_where_it_can_be_nothing_else(labels, listed):
    task, examples, _, issues = built(classes(labels=listed), train=texts(*labels))
    assert issues == []
    assert str(labels[0]) in task.labels
    assert len(examples["train"]) == 3


@pytest.mark.parametrize("text", ["", " \n", None])
def test_blank_text_is_left_out_on_request(text):
    split = rows({"text": "a", "label": "x"}, {"text": text, "label": "y"}, {"text": "b", "label": "y"})
    *_, issues = built(classes(), train=split)
    assert "f:2: expected text to " in issues[0]
    assert "data.drop_blank: true" in issues[0]
    _, examples, ledgers, issues = built(classes(), drop_blank=True, train=split)
    assert (issues, len(examples["train"]), sum(ledgers["train"].dropped.values())) == ([], 2, 1)


# --- several labels in a cell


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["roads|parks", "parks"], [("roads", "parks"), ("parks",)]),
        (["roads | parks", ""], [("roads", "parks"), ()]),
        (["food, drink|roads", "food, drink"], [("food, drink", "roads"), ("food, drink",)]),
        (["roads;parks", "food, drink"], [("roads", "parks"), ("food, drink",)]),
        (['"food, drink", roads', "roads"], [("food, drink", "roads"), ("roads",)]),
        (["roads,parks", "parks,"], [("roads", "parks"), ("parks",)]),
    ],
)
def test_separator_of_labels_is_that_of_the_column(cells, expected):
    split = rows(*({"text": "x", "labels": cell} for cell in cells))
    _, examples, _, issues = built(classes(multi_label=True), train=split)
    assert issues == []
    assert labels_of(examples["train"]) == expected


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        ("food, drink, roads", ["food, drink", "roads"]),
        ("food, drink|a|b|roads", ["food, drink", "a|b", "roads"]),
        ("a|b", ["a|b"]),
        ("roads;food, drink;", ["roads", "food, drink"]),
    ],
)
def test_listed_name_is_never_split(cell, names):
    assert split_labels(cell, ["food, drink", "roads", "a|b"]) == names

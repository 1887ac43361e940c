"""Two files whose lines belong together, and columns inside a column."""

import pytest

from peftlab.data import load_rows
from peftlab.errors import ErrorCollector, RecipeError
from peftlab.recipe import DataSection


def rows_of(**section):
    with ErrorCollector() as errors:
        return load_rows(DataSection(**section), errors).splits["train"].rows


def test_parallel_files_are_read_line_by_line(write):
    english = write("train.en", "the train was late\n\nit rained [today]\n")
    write("train.de", "der Zug war alt\n\nes regnete [heute]\n")
    rows = rows_of(train=str(english.with_name("train.{en,de}")), validation=str(english.with_name("train.{en,de}")))
    assert [row.fields for row in rows] == [
        {"text": "the train was late", "translation": "der Zug war alt"},
        {"text": "it rained [today]", "translation": "es regnete [heute]"},
    ]
    assert [row.where for row in rows] == [f"{english}:1", f"{english}:3"]


@pytest.mark.parametrize(
    ("english", "german", "message"),
    [
        ("one\ntwo\n", "eins\n", "train.de:2: expected as many lines in train.en as in train.de"),
        ("one\n", "eins\nzwei\n", "train.en:2: expected as many lines in train.en as in train.de"),
    ],
)
def test_unequal_parallel_files_are_reported(write, english, german, message):
    folder = write("train.en", english).parent
    write("train.de", german)
    with pytest.raises(RecipeError) as fault:
        rows_of(train=str(folder / "train.{en,de}"))
    assert message in str(fault.value).replace("  ", ": ")


def test_missing_parallel_file_is_named(write):
    folder = write("train.en", "one\n").parent
    with pytest.raises(RecipeError, match=r"no such file: .*train\.ed\. Is it 'train\.en'\?|no such file: .*train\.ed"):
        rows_of(train=str(folder / "train.{en,ed}"))


def test_nested_column_uses_dotted_name(write):
    line = '{"id": 1, "translation": {"en": "one", "de": "eins"}}\n'
    columns = {"text": "translation.en", "translation": "translation.de"}
    (row,) = rows_of(train=str(write("rows.jsonl", line)), validation=str(write("v.jsonl", line)), columns=columns)
    assert (row.fields["text"], row.fields["translation"]) == ("one", "eins")
    with pytest.raises(RecipeError, match=r"translation\.en"):
        rows_of(train=str(write("rows.jsonl", line)), columns={"text": "translation.eng"})

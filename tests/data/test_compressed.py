"""Compressed files are read by their first bytes, and JSON with rows under `data` is no SQuAD."""

import bz2
import gzip
import json
import lzma

import pyarrow
import pytest

from peftlab.data.loading import read_split
from peftlab.errors import ErrorCollector, RecipeError
from peftlab.recipe import DataSection

ROWS = [{"text": "Ada left Rome.", "label": "news"}, {"text": "It rained, é 漢.", "label": "weather"}]
CONTENTS = {
    "rows.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "rows.json": json.dumps(ROWS, indent=1),
    "rows.csv": 'text,label\nAda left Rome.,news\n"It rained, é 漢.",weather\n',
    "rows.tsv": "text\tlabel\nAda left Rome.\tnews\nIt rained, é 漢.\tweather\n",
}
COMPRESS = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "zst": lambda content: pyarrow.compress(content, "zstd", asbytes=True),
}


def rows_of(path):
    with ErrorCollector() as errors:
        section = DataSection(train=str(path))
        return read_split(section, str(path), errors, key="data.train").rows


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", CONTENTS)
def test_compressed_rows_equal_plain_ones(tmp_path, name, suffix):
    (tmp_path / name).write_text(CONTENTS[name])
    plain = rows_of(tmp_path / name)
    assert [row.fields for row in plain] == ROWS
    (tmp_path / f"{name}.{suffix}").write_bytes(COMPRESS[suffix](CONTENTS[name].encode()))
    rows = rows_of(tmp_path / f"{name}.{suffix}")
    assert [row.fields for row in rows] == ROWS
    assert [row.where.replace(f".{suffix}", "") for row in rows] == [row.where for row in plain]
    (tmp_path / name).write_bytes(COMPRESS[suffix](CONTENTS[name].encode()))  # whatever its name is
    assert [row.fields for row in rows_of(tmp_path / name)] == ROWS


@pytest.mark.parametrize("suffix", COMPRESS)
def test_damaged_file_is_refused(tmp_path, suffix):
    content = COMPRESS[suffix](CONTENTS["rows.jsonl"].encode())
    (tmp_path / f"rows.jsonl.{suffix}").write_bytes(content[: len(content) // 2])
    with pytest.raises(RecipeError, match=rf"data.train: .*rows.jsonl.{suffix} is damaged"):
        rows_of(tmp_path / f"rows.jsonl.{suffix}")


def test_invalid_row_of_compressed_file_has_its_line(tmp_path):
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n{"a": \n'))
    with pytest.raises(RecipeError, match=r"rows.jsonl.gz:2: expected one JSON object"):
        rows_of(tmp_path / "rows.jsonl.gz")


def test_archive_is_refused(tmp_path):
    (tmp_path / "rows.zip").write_bytes(b"PK\x03\x04rest")
    with pytest.raises(RecipeError, match=r"rows.zip is a zip archive; extract its files first"):
        rows_of(tmp_path / "rows.zip")


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("more", [{}, {"version": "1", "license": "CC"}])
def test_rows_under_data_are_rows(tmp_path, indent, more):
    (tmp_path / "rows.json").write_text(json.dumps({**more, "data": ROWS}, indent=indent))
    assert [row.fields for row in rows_of(tmp_path / "rows.json")] == ROWS
    paragraph = {"context": "It rained.", "qas": [{"id": "1", "question": "What?", "answers": []}]}
    squad = {**more, "data": [{"title": "a", "paragraphs": [paragraph]}]}
    (tmp_path / "squad.json").write_text(json.dumps(squad, indent=indent))
    assert [row.fields["question"] for row in rows_of(tmp_path / "squad.json")] == ["What?"]

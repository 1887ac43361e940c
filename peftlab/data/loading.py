"""Read the rows of every split that the data section of a recipe names."""

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from peftlab.data.compressed import CompressionError, decompressed, with_location
from peftlab.data.conll import looks_like_conll, read_conll
from peftlab.data.grouping import group_rows
from peftlab.data.json_files import read_json, read_jsonl, read_squad
from peftlab.data.markup import read_markup
from peftlab.data.parallel import parallel_paths, read_parallel
from peftlab.data.plain_text import read_lines, read_paragraphs
from peftlab.data.prodigy import leave_out_rejected
from peftlab.data.rows import DataSplits, Row, RowError, Split
from peftlab.data.splitting import RowLabels, split_off_fractions
from peftlab.data.tables import read_csv, read_dataset, read_parquet, read_tsv
from peftlab.errors import ErrorCollector, NotFoundError, suggest
from peftlab.recipe import AUTO, DataSection

Reader = Callable[[Path, str, Sequence[str] | None], Iterator[Row | RowError]]
"""Takes a path, an encoding and, for tables without a header line, column names; gives rows."""

FORMATS: dict[str, Reader] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "squad": read_squad,
    "conll": read_conll,
    "markup": read_markup,
    "text": read_lines,
    "paragraphs": read_paragraphs,
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": read_parquet,
}
FORMAT_BY_SUFFIX = {
    ".jsonl": "jsonl",
    ".conll": "conll",
    ".iob": "conll",
    ".bio": "conll",
    ".iob1": "conll",
    ".iob2": "conll",
    ".iobes": "conll",
    ".bio2": "conll",
    ".bioes": "conll",
    ".bilou": "conll",
    ".bmes": "conll",
    ".conll2003": "conll",
    ".conllu": "conll",
    ".conllup": "conll",
    ".csv": "csv",
    ".parquet": "parquet",
}
MAX_ISSUES_PER_SPLIT = 5
AUTO_FRACTION = 0.1
"""Fraction of the training rows that `validation: auto` splits off."""
MIN_VALIDATION_ROWS = 30
"""With fewer rows, `validation: auto` uses cross-validation."""
_LOCATED = re.compile(r"(?P<where>.+?(?::\d+( \(question .*?\))?| row \d+)): (?P<said>.+)", re.DOTALL)


def load_rows(
    section: DataSection,
    errors: ErrorCollector,
    *,
    plain_text: bool = False,
    labels_of: RowLabels | None = None,
    cross_validates: bool = False,
) -> DataSplits:
    """Read the rows of each split, or split them off the training rows. Unreadable rows are added to `errors`.

    With `plain_text`, a file that is not a table holds plain text instead of markup. With `labels_of`, rows are split
    off by label. With `cross_validates`, `validation: auto` splits off nothing if there would be too few rows.
    """
    sources = {name: getattr(section, name) for name in ("train", "validation", "test")}
    splits = {
        name: leave_out_rejected(read_split(section, source, errors, key=f"data.{name}", plain_text=plain_text))
        for name, source in sources.items()
        if isinstance(source, str) and not (name == "validation" and source == AUTO)
    }
    if section.validation == AUTO:
        few = AUTO_FRACTION * len(splits["train"].rows) < MIN_VALIDATION_ROWS
        sources["validation"] = None if few and cross_validates else AUTO_FRACTION
    fractions = {name: fraction for name, fraction in sources.items() if isinstance(fraction, float)}
    splits = split_off_fractions(splits, fractions, section.seed, errors, labels_of)
    return DataSplits({name: splits[name] for name in sources if name in splits})


def detect_format(path: Path, encoding: str = "utf-8-sig", *, plain_text: bool = False) -> str:
    """Detect the format by the file's suffix, or else by its first lines: JSON, columns of tokens and tags, or markup.

    With `plain_text`, the last two are not considered.
    """
    suffix = path.suffix.lower()
    if suffix in FORMAT_BY_SUFFIX:
        return FORMAT_BY_SUFFIX[suffix]
    with path.open(encoding=encoding) as file:
        lines = [line for line, _ in zip((line for line in file if line.strip()), range(20), strict=False)]
    if suffix == ".json":
        return _detect_json_format(lines, path, encoding)
    if lines and all(line.lstrip().startswith("{") for line in lines):
        return "jsonl"
    if plain_text and suffix != ".tsv":
        return "text"
    if suffix == ".tsv":  # a table has a first line without a tag
        return "conll" if looks_like_conll(lines) and looks_like_conll(lines[:1]) else "tsv"
    return "conll" if looks_like_conll(lines) else "markup"


def _detect_json_format(lines: list[str], path: Path, encoding: str) -> str:
    """The format of a .json file: a list of objects, alone or under `data`, one object per line in spite of its suffix,
    or SQuAD's."""
    if not lines or not lines[0].lstrip().startswith("{"):
        return "json"
    try:
        document = json.loads(lines[0])
        if len(lines) > 1 or "data" not in document:
            return "jsonl"
    except ValueError:
        try:  # the object takes several lines
            document = json.loads(path.read_text(encoding=encoding))
        except (ValueError, RecursionError):
            return "squad"
    articles = document.get("data") if isinstance(document, dict) else None
    has_articles = not (isinstance(articles, list) and articles) or any(
        "paragraphs" in one for one in articles if isinstance(one, dict)
    )
    return "squad" if has_articles else "json"


def read_split(
    section: DataSection, source: str, errors: ErrorCollector, *, key: str, plain_text: bool = False
) -> Split:
    """Read the rows of one file or dataset split and rename their columns. Issues are recorded at the recipe's `key`.

    `plain_text` is as in `load_rows`.
    """
    found = (
        _read_dataset(section, key, source, errors)
        if section.dataset
        else _read_file(section, key, source, errors, plain_text=plain_text)
    )
    unreadable = [error for error in found or () if isinstance(error, RowError)]
    add_row_errors(unreadable, errors)
    if found is not None and not found:
        errors.add(f"{source} holds no rows.", key=key)
    rows = [row for row in found or () if isinstance(row, Row)]
    rows = group_rows(rows, section.group_by, errors) if section.group_by else rows
    rows = _rename_columns(rows, section.columns, errors)
    return Split(rows, _display_source(section, source), num_unreadable=len(unreadable))


def _display_source(section: DataSection, source: str) -> str:
    """The source without the folders of this machine, because it is published with the adapter."""
    if not section.dataset:
        return Path(source).name
    dataset = Path(section.dataset)
    return f"{dataset.name if dataset.is_absolute() else dataset}/{source}"


def add_row_errors(row_errors: Iterable[RowError], errors: ErrorCollector) -> None:
    """Record the first few row errors, and the number of the rest."""
    messages = [str(error) for error in row_errors]
    for message in messages[:MAX_ISSUES_PER_SPLIT]:
        located = _LOCATED.fullmatch(message)
        errors.add(located["said"] if located else message, where=located["where"] if located else "")
    if len(messages) > MAX_ISSUES_PER_SPLIT:
        errors.add(f"… and {len(messages) - MAX_ISSUES_PER_SPLIT} more rows like these.")


def add_invalid_rows(broken: Sequence[tuple[str, str]], errors: ErrorCollector, *, read: int) -> None:
    """Record the `broken` rows, (where, message) each; if all rows `read` have the same message, it is recorded
    once."""
    if read == len(broken) > 1 and len({message for _, message in broken}) == 1:
        _add_common_issue(*broken[0], errors)
    else:
        add_row_errors([RowError(f"{where}: {message}") for where, message in broken], errors)


def _add_common_issue(where: str, message: str, errors: ErrorCollector) -> None:
    """Record an issue that every row has, such as a wrong column name, once per file and not once per split."""
    file = where.rpartition(":")[0]
    if not any(issue.message == message and issue.where.startswith(file) for issue in errors.issues):
        errors.add(message, where=f"{where} and every other row")


def _read_dataset(section: DataSection, key: str, split: str, errors: ErrorCollector) -> list[Row | RowError] | None:
    try:
        return list(read_dataset(str(section.dataset), section.subset, split))
    except NotFoundError as error:
        errors.add(f"{error}.", key=key)
        return None


def _read_file(
    section: DataSection, key: str, source: str, errors: ErrorCollector, *, plain_text: bool
) -> list[Row | RowError] | None:
    path = Path(source)
    if path.is_dir():
        errors.add(f"{path} is a folder.", key=key, hint="Name a file in it, or load it as a dataset: data.dataset.")
        return None
    try:
        name = codecs.lookup(section.encoding).name
        encoding = "utf-8-sig" if name == "utf-8" else name  # with or without a byte order mark
        if pair := parallel_paths(path):
            return list(read_parallel(pair, encoding))
        with decompressed(path) as copy:
            format_name = (
                detect_format(copy, encoding, plain_text=plain_text) if section.format == "auto" else section.format
            )
            rows = list(FORMATS[format_name](copy, encoding, section.header))
            return rows if copy == path else [with_location(row, copy, path) for row in rows]
    except CompressionError as error:
        errors.add(f"{path} {error}.", key=key)
    except FileNotFoundError as error:
        path = Path(error.filename or path)
        siblings = [found.name for found in path.parent.glob("*")] if path.parent.is_dir() else []
        hint = (
            suggest(path.name, siblings, what="Available files") if siblings else f"There is no folder {path.parent}."
        )
        errors.add(f"no such file: {path}.", key=key, hint=hint)
    except UnicodeError:
        hint = "Name the encoding it has, as in data.encoding: latin-1, or convert the file to UTF-8."
        errors.add(
            f"{path} is not {section.encoding} text{_describe_bad_byte(path, section.encoding)}.", key=key, hint=hint
        )
    except LookupError:
        errors.add(f"unknown encoding '{section.encoding}'.", key="data.encoding", hint="utf-8 fits most files.")
    except OSError as error:
        errors.add(f"{path} cannot be read: {error.strerror}.", key=key)
    return None


def _describe_bad_byte(path: Path, encoding: str) -> str:
    """The position of the first undecodable byte, as text; decoding in chunks gives only the position in a chunk."""
    try:
        path.read_bytes().decode(encoding)
    except UnicodeDecodeError as error:
        return f" (byte {error.start})"
    except UnicodeError:
        pass  # this codec does not report a position
    return ""


def _rename_columns(rows: list[Row], columns: dict[str, str], errors: ErrorCollector) -> list[Row]:
    """Rename the columns to peftlab's names. A name that no row has is recorded in `errors`."""
    if not (rows and columns):
        return rows
    present = set().union(*(_flatten_columns(row.fields) for row in rows))
    for ours, theirs in columns.items():
        if theirs not in present:
            hint = suggest(theirs, present, what="Available columns")
            errors.add(f"no column '{theirs}' in {rows[0].where}.", key=f"data.columns.{ours}", hint=hint)
    return [Row(_rename_fields(row.fields, columns), row.where) for row in rows]


def _rename_fields(fields: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """Rename the fields of one row; `translation.de` is the column `de` inside the column `translation`."""
    flat = _flatten_columns(fields)
    remaining = {name: value for name, value in fields.items() if name not in columns.values()}
    return remaining | {ours: flat[theirs] for ours, theirs in columns.items() if theirs in flat}


def _flatten_columns(fields: dict[str, Any]) -> dict[str, Any]:
    """The columns, and the columns inside them by dotted names."""
    holders = {name: content for name, content in fields.items() if isinstance(content, dict)}
    return fields | {f"{name}.{inner}": value for name, content in holders.items() for inner, value in content.items()}

"""The data section of a recipe → rows of every split."""

import codecs
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from peftlab.data.conll import read_conll, split_columns
from peftlab.data.json_files import read_json, read_jsonl, read_squad
from peftlab.data.markup import read_markup
from peftlab.data.parallel import parallel_paths, read_parallel
from peftlab.data.plain_text import read_lines, read_paragraphs
from peftlab.data.rows import DataSplits, Row, RowError, Split
from peftlab.data.tables import read_csv, read_dataset, read_parquet, read_tsv
from peftlab.errors import ErrorCollector, NotFoundError, suggest
from peftlab.recipe import DataSection

Reader = Callable[[Path, str, Sequence[str] | None], Iterator[Row | RowError]]
"""Path, encoding and, for tables without a header line, column names → rows."""

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
ENDINGS = {
    ".jsonl": "jsonl",
    ".conll": "conll",
    ".iob": "conll",
    ".bio": "conll",
    ".csv": "csv",
    ".parquet": "parquet",
}
SHOWN_PER_SPLIT = 5
_PLACED = re.compile(r"(?P<where>.+?(?::\d+( \(question .*?\))?| row \d+)): (?P<said>.+)", re.DOTALL)


def load_rows(section: DataSection, errors: ErrorCollector, *, plain: bool = False) -> DataSplits:
    """Rows of each split, read or carved; what cannot be read is added to `errors`.

    With `plain`, files that are no tables hold text as it stands, and not markup.
    """
    named = {name: getattr(section, name) for name in ("train", "validation", "test")}
    splits = {
        name: read_split(section, source, errors, key=f"data.{name}", plain=plain)
        for name, source in named.items()
        if isinstance(source, str)
    }
    shares = {name: share for name, share in named.items() if isinstance(share, float)}
    splits = _carve(splits, shares, section.seed, errors)
    return DataSplits({name: splits[name] for name in named if name in splits})


def detect_format(path: Path, encoding: str = "utf-8-sig", *, plain: bool = False) -> str:
    """The format by the file's ending, or else by its first lines: JSON, token-and-tag columns, or markup.

    Of `plain` text, lines are neither tagged nor marked up.
    """
    ending = path.suffix.lower()
    if ending in ENDINGS:
        return ENDINGS[ending]
    with path.open(encoding=encoding) as file:
        lines = [line for line, _ in zip((line for line in file if line.strip()), range(20), strict=False)]
    if ending == ".json":
        return _guess_json(lines)
    if lines and all(line.lstrip().startswith("{") for line in lines):
        return "jsonl"
    if plain and ending != ".tsv":
        return "text"
    last_columns = [split_columns(line)[-1] for line in lines]
    tagged = sum(tag == "O" or tag[1:2] == "-" for tag in last_columns)
    untagged = "tsv" if ending == ".tsv" else "markup"
    return "conll" if tagged > len(lines) / 2 else untagged


def _guess_json(lines: list[str]) -> str:
    """What a .json file is: a list of objects, an object a line in spite of its ending, or SQuAD's nesting."""
    if not lines or not lines[0].lstrip().startswith("{"):
        return "json"
    try:
        first = json.loads(lines[0])
    except json.JSONDecodeError:
        return "squad"  # written over several lines
    return "squad" if "data" in first else "jsonl"


def read_split(section: DataSection, source: str, errors: ErrorCollector, *, key: str, plain: bool = False) -> Split:
    """The rows of one file or dataset split, their columns under our names; problems are told at the recipe's `key`.

    `plain` is as for `load_rows`.
    """
    found = (
        _read_dataset(section, key, source, errors)
        if section.dataset
        else _read_file(section, key, source, errors, plain=plain)
    )
    add_row_errors([error for error in found or () if isinstance(error, RowError)], errors)
    if found is not None and not found:
        errors.add(f"{source} holds no rows.", key=key)
    rows = [row for row in found or () if isinstance(row, Row)]
    return Split(_rename_columns(rows, section.columns, errors), _shown_source(section, source))


def _shown_source(section: DataSection, source: str) -> str:
    """Where rows came from, without the folders of this machine: it is published with the adapter."""
    if not section.dataset:
        return Path(source).name
    dataset = Path(section.dataset)
    return f"{dataset.name if dataset.is_absolute() else dataset}/{source}"


def add_row_errors(row_errors: Iterable[RowError], errors: ErrorCollector) -> None:
    """Tell the first few broken rows whole, and the number of the others."""
    messages = [str(error) for error in row_errors]
    for message in messages[:SHOWN_PER_SPLIT]:
        placed = _PLACED.fullmatch(message)
        errors.add(placed["said"] if placed else message, where=placed["where"] if placed else "")
    if len(messages) > SHOWN_PER_SPLIT:
        errors.add(f"… and {len(messages) - SHOWN_PER_SPLIT} more rows like these.")


def add_invalid_rows(broken: Sequence[tuple[str, str]], errors: ErrorCollector, *, read: int) -> None:
    """Tell (place, what is wrong) of some of the rows `read`: once, if it is the same with every one of them."""
    if read == len(broken) > 1 and len({message for _, message in broken}) == 1:
        _add_once(*broken[0], errors)
    else:
        add_row_errors([RowError(f"{where}: {message}") for where, message in broken], errors)


def _add_once(where: str, message: str, errors: ErrorCollector) -> None:
    """Something wrong with every row, such as a column's name: told once a file, however it is carved into splits."""
    file = where.rpartition(":")[0]
    if not any(told.message == message and told.where.startswith(file) for told in errors.issues):
        errors.add(message, where=f"{where} and every other row")


def _read_dataset(section: DataSection, key: str, split: str, errors: ErrorCollector) -> list[Row | RowError] | None:
    try:
        return list(read_dataset(str(section.dataset), section.subset, split))
    except NotFoundError as error:
        errors.add(f"{error}.", key=key)
        return None


def _read_file(
    section: DataSection, key: str, source: str, errors: ErrorCollector, *, plain: bool
) -> list[Row | RowError] | None:
    path = Path(source)
    if path.is_dir():
        errors.add(f"{path} is a folder.", key=key, hint="Name a file in it, or load it as a dataset: data.dataset.")
        return None
    try:
        name = codecs.lookup(section.encoding).name
        encoding = "utf-8-sig" if name == "utf-8" else name  # with or without a mark
        if pair := parallel_paths(path):
            return list(read_parallel(pair, encoding))
        kind = detect_format(path, encoding, plain=plain) if section.format == "auto" else section.format
        return list(FORMATS[kind](path, encoding, section.header))
    except FileNotFoundError as error:
        path = Path(error.filename or path)
        beside = [found.name for found in path.parent.glob("*")] if path.parent.is_dir() else []
        hint = suggest(path.name, beside, what="Files there") if beside else f"There is no folder {path.parent}."
        errors.add(f"no such file: {path}.", key=key, hint=hint)
    except UnicodeError:
        hint = "Name the encoding it has, as in data.encoding: latin-1, or convert the file to UTF-8."
        errors.add(f"{path} is not {section.encoding} text{_first_wrong(path, section.encoding)}.", key=key, hint=hint)
    except LookupError:
        errors.add(f"unknown encoding '{section.encoding}'.", key="data.encoding", hint="utf-8 fits most files.")
    except OSError as error:
        errors.add(f"{path} cannot be read: {error.strerror}.", key=key)
    return None


def _first_wrong(path: Path, encoding: str) -> str:
    """Which byte of the file is none; a file read in pieces tells only where in its piece."""
    try:
        path.read_bytes().decode(encoding)
    except UnicodeDecodeError as error:
        return f" (byte {error.start})"
    except UnicodeError:
        pass  # a codec that does not say where
    return ""


def _rename_columns(rows: list[Row], columns: dict[str, str], errors: ErrorCollector) -> list[Row]:
    """Give the columns our names; a name that no row has is a problem."""
    if not (rows and columns):
        return rows
    present = set().union(*(_nested_names(row.fields) for row in rows))
    for ours, theirs in columns.items():
        if theirs not in present:
            hint = suggest(theirs, present, what="Columns there")
            errors.add(f"no column '{theirs}' in {rows[0].where}.", key=f"data.columns.{ours}", hint=hint)
    return [Row(_renamed(row.fields, columns), row.where) for row in rows]


def _renamed(fields: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """Columns inside a column are named by both, as in `translation.de`."""
    within = _nested_names(fields)
    kept = {name: value for name, value in fields.items() if name not in columns.values()}
    return kept | {ours: within[theirs] for ours, theirs in columns.items() if theirs in within}


def _nested_names(fields: dict[str, Any]) -> dict[str, Any]:
    """The columns, and those inside them by dotted names."""
    holders = {name: held for name, held in fields.items() if isinstance(held, dict)}
    return fields | {f"{name}.{inner}": value for name, held in holders.items() for inner, value in held.items()}


def _carve(splits: dict[str, Split], shares: dict[str, float], seed: int, errors: ErrorCollector) -> dict[str, Split]:
    """Take the given shares out of the training rows, at random but the same for a seed; order is kept."""
    if not shares or not splits["train"].rows:
        return splits
    rows = splits["train"].rows
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    carved, taken = dict(splits), 0
    for name, share in shares.items():
        count = max(1, round(share * len(rows)))
        chosen = sorted(order[taken : taken + count])
        carved[name] = Split([rows[i] for i in chosen], f"{share:.0%} of the training rows, seed {seed}")
        taken += count
    if taken >= len(rows):
        errors.add(f"the shares of {' and '.join(shares)} leave no training rows.", key="data")
    carved["train"] = Split([rows[i] for i in sorted(order[taken:])], splits["train"].source)
    return carved

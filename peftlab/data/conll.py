"""CoNLL files: one token a line with its tag, a blank line between sentences.

Columns are separated by tabs, or else by spaces; an empty column keeps its place. `-DOCSTART-` lines separate documents
and hold no token. Lines such as `# label = founded` or `# id 7 domain=en` before the first token of a sentence add
fields to its row. The token is in the first column, or in the second if the first numbers the tokens; the tag is in the
last column that holds tags. `data.header` names the columns otherwise.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peftlab.data.rows import Row, RowError

HEADER_HINT = "name the columns in their order, as in data.header: [id, tokens, tags]"
MIN_LINES = 5
"""Fewer lines do not show a format."""
CHUNKS = frozenset(["ADJP", "ADVP", "CONJP", "INTJ", "LST", "NP", "PP", "PRT", "SBAR", "UCP", "VP", "NC", "PC"])
"""Types of the chunk column that comes before the entity tags in CoNLL-2003."""
TOKEN_NAMES = frozenset(["word", "words", "token", "tokens", "text", "form"])
TAG_NAMES = frozenset(["tag", "tags", "ner", "ner_tag", "ner_tags", "label", "labels", "entity"])
_FIELD = re.compile(r"#\s*(\w+)\s*=\s*(.*\S)\s*")
_ID_FIELD = re.compile(r"#\s*(\w+)\s+(\S+)")
_PAIR = re.compile(r"(?<!\S)(\w+)=(\S+)")
_TAG = re.compile(r"O|[BIESLUMW]-.+")


@dataclass
class _Sentence:
    """The fields, and the columns of each token with the number of its line."""

    fields: dict[str, str] = field(default_factory=dict)
    lines: list[tuple[int, list[str]]] = field(default_factory=list)


def read_conll(path: Path, encoding: str, header: Sequence[str] | None) -> Iterator[Row | RowError]:
    """Rows with `tokens` and `tags`, or with the columns of `header`; `where` is the line of the first token."""
    with path.open(encoding=encoding) as file:
        lines = list(file)
    separator = find_separator(lines)
    sentences = list(_split_sentences(lines, separator))
    try:
        columns = dict(zip(header, range(len(header)), strict=True)) if header else _find_columns(sentences)
    except RowError as error:
        yield RowError(f"{path}: {error}")
        return
    if not header and (first := _header_line(sentences, columns)):
        yield RowError(f"{path}:{first}: this line holds the column names, not a token and its tag; delete it")
        return
    width = len(header) if header else _width(sentences)
    for sentence in sentences:
        faults = [_check_line(line, width, columns, named=bool(header)) for _, line in sentence.lines]
        yield from (
            RowError(f"{path}:{number}: {fault}")
            for (number, _), fault in zip(sentence.lines, faults, strict=True)
            if fault
        )
        if kept := [line for line, fault in zip(sentence.lines, faults, strict=True) if not fault]:
            values = {name: [line[index] for _, line in kept] for name, index in columns.items()}
            yield Row({**sentence.fields, **values}, f"{path}:{kept[0][0]}")


def find_separator(lines: Iterable[str]) -> str | None:
    """A tab if most lines that are not blank have one between columns, else None for spaces."""
    tabs = [("\t" in line.strip()) for line in lines if line.strip()]
    return "\t" if 2 * sum(tabs) > len(tabs) else None


def split_columns(line: str, separator: str | None) -> list[str]:
    """The columns of a line, without the empty ones at its end."""
    line = line.rstrip("\r\n")
    columns = (
        [column.strip(" ") for column in line.split(separator)] if separator else re.split(r"[ \t]+", line.strip(" \t"))
    )
    while columns and not columns[-1]:
        columns.pop()
    return columns


def is_comment(line: str, columns: Sequence[str]) -> bool:
    """Whether a line, if no token comes before it, is a comment; `#` with a tag is a token."""
    starts = line.startswith("#") and not _TAG.fullmatch(columns[-1])
    return starts or bool("\t" not in line and _FIELD.fullmatch(line.strip()))


def looks_like_conll(lines: Sequence[str]) -> bool:
    """Whether most lines end with a tag, or some do and all are a word with as many columns; comments do not count."""
    separator = find_separator(lines)
    found = [(line, split_columns(line, separator)) for line in lines]
    rows = [columns for line, columns in found if columns and not is_comment(line, columns)]
    tagged = sum(_is_tag(columns[-1]) for columns in rows)
    if not rows or 2 * tagged > len(rows):
        return bool(rows)
    same_width = len({len(columns) for columns in rows}) == 1 and len(rows) >= MIN_LINES and len(rows[0]) > 1
    return bool(tagged) and same_width and not any(" " in columns[0] for columns in rows)


def _split_sentences(lines: Iterable[str], separator: str | None) -> Iterator[_Sentence]:
    sentence = _Sentence()
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if sentence.lines:
                yield sentence
                sentence = _Sentence()
            continue
        columns = split_columns(line, separator)
        if not sentence.lines and is_comment(line, columns):
            sentence.fields |= _comment_fields(line.strip())
        else:
            sentence.lines.append((number, columns))
    if sentence.lines:
        yield sentence


def _comment_fields(comment: str) -> dict[str, str]:
    """`# label = founded` → label; `# id 7 domain=en` → id and domain; other comments → nothing."""
    if found := _FIELD.fullmatch(comment):
        return {found[1]: found[2]}
    pairs = dict(_PAIR.findall(comment))
    first = _ID_FIELD.match(comment) if pairs else None
    return ({first[1]: first[2]} if first and "=" not in first[2] else {}) | pairs


def _width(sentences: Sequence[_Sentence]) -> int:
    """The number of columns that most lines have."""
    widths = Counter(len(columns) for sentence in sentences for _, columns in sentence.lines)
    return max(widths, key=lambda width: (widths[width], width), default=0)


def _find_columns(sentences: Sequence[_Sentence]) -> dict[str, int]:
    """The columns of tokens and tags.

    Raises:
        RowError: several columns may be the one.
    """
    width = _width(sentences)
    complete = [[columns for _, columns in s.lines if len(columns) == width] for s in sentences]
    complete = [lines for lines in complete if lines]
    token = 1 if width > 2 and _numbers_tokens([[line[0] for line in lines] for lines in complete]) else 0
    by_column = [[line[i] for lines in complete for line in lines] for i in range(width)]
    tagged = [i for i in range(token + 1, width) if 2 * sum(map(_is_tag, by_column[i])) > len(by_column[i])]
    if len(tagged) > 1:
        _check_levels(tagged[-2:], by_column)
    return {"tokens": token, "tags": tagged[-1] if tagged else max(1, width - 1)}


def _header_line(sentences: Sequence[_Sentence], columns: dict[str, int]) -> int | None:
    """The number of the first line if it names the columns, as in `Word Tag`."""
    if not sentences:
        return None
    number, line = sentences[0].lines[0]
    named = {name: line[index].casefold() for name, index in columns.items() if index < len(line)}
    is_header = named.get("tokens") in TOKEN_NAMES and named.get("tags") in TAG_NAMES
    return number if is_header else None


def _numbers_tokens(firsts: Sequence[Sequence[str]]) -> bool:
    """Whether the first column numbers the tokens, in each sentence or through the file.

    Raises:
        RowError: it holds numbers in another order.
    """
    flat = [value for sentence in firsts for value in sentence]
    if not flat or 10 * sum(value.isdecimal() for value in flat) < 9 * len(flat):
        return False
    if any(_counts_from(flat, start) or all(_counts_from(s, start) for s in firsts) for start in (0, 1)):
        return True
    raise RowError(f"column 1 holds numbers such as {flat[0]}, which do not count the tokens; {HEADER_HINT}")


def _counts_from(values: Sequence[str], start: int) -> bool:
    return all(value == str(number) for number, value in enumerate(values, start=start))


def _check_levels(tagged: Sequence[int], by_column: Sequence[Sequence[str]]) -> None:
    """Refuse two columns of entity tags, as GermEval has them for nested entities."""
    types = [{tag[2:] for tag in by_column[i] if tag != "O" and _is_tag(tag)} for i in tagged]
    if types[0] <= CHUNKS and types[1]:
        return
    if types[0] & types[1] or not types[1]:
        first, second = (i + 1 for i in tagged)
        raise RowError(f"columns {first} and {second} both hold tags; {HEADER_HINT}")


def _is_tag(value: str) -> bool:
    return bool(_TAG.fullmatch(value))


def _check_line(line: Sequence[str], width: int, columns: dict[str, int], *, named: bool) -> str:
    """What is wrong with a line of a sentence; empty if nothing is."""
    if not named and (len(line) < 2 or not line[0]):
        return f"expected a token, a tab or space, and a tag; found {' '.join(line).strip()!r}"
    if len(line) != width:
        return f"expected {width} columns, found {len(line)}: {' '.join(line)[:60]!r}"
    empty = next((name for name, index in columns.items() if name in ("tokens", "tags") and not line[index]), None)
    return f"column {columns[empty] + 1} ({empty}) is empty" if empty else ""

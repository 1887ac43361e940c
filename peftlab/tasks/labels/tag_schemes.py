"""Tags on words ↔ spans of words.

One lenient reading covers IOB1, IOB2 and IOBES (also spelled BILOU, BMES or BMEWO), as the CoNLL-2000 scorer does: a
span begins at B or S, or at I or E where the word before is not in a span of the same type; it ends after E or S. A
named scheme is checked strictly. In `io` tags are types without a prefix.
"""

import re
from collections.abc import Iterable, Sequence

WordSpan = tuple[int, int, str]
"""First word, word after the last, type."""

_IOB2 = re.compile(r"O|([BI])-(.+)")
_TAG = re.compile(r"O|([BIESLUMW])-(.+)")
_SAME_AS = {"L": "E", "U": "S", "M": "I", "W": "S"}
_MARKED_OTHERWISE = re.compile(r"(?i)[BIESLUMW][_:/|.].+|.+[-_:/|.][BIESLUMW]|(?-i:[biesl])-.+")


def spans_from_tags(tags: list[str], scheme: str = "auto") -> list[WordSpan]:
    """Tags → spans, in order.

    Raises:
        ValueError: a tag is malformed, or not allowed at its place in `scheme`; the message names the word's number.
    """
    spans: list[WordSpan] = []
    previous, inside = "O", False  # inside: the span of the previous word may go on
    for i, tag in enumerate(tags):
        prefix, kind = _split_tag(tag, i) if scheme != "io" else ("O" if tag == "O" else "I", tag)
        joins = inside and kind == spans[-1][2] and prefix in "IE"
        if scheme not in ("auto", "io"):
            _check(tag, prefix, joins, previous, scheme, i)
        if joins:
            spans[-1] = (spans[-1][0], i + 1, kind)
        elif prefix != "O":
            spans.append((i, i + 1, kind))
        inside = prefix in "BI"
        previous = tag
    if scheme in ("iobes", "bmes") and inside:
        raise ValueError(f"word {len(tags)}: '{previous}' must be followed by I- or E- of the same type in {scheme}")
    return spans


def detect_scheme(tags: Iterable[str]) -> str:
    """`io` if the tags of a split are O and types without any prefix, else `auto`.

    Raises:
        ValueError: no tag has a prefix, and none is O.
    """
    seen = set(tags)
    types = seen - {"O"}
    if not types or any(_TAG.fullmatch(tag) for tag in types) or any(map(_MARKED_OTHERWISE.fullmatch, types)):
        return "auto"
    if "O" not in seen:
        shown = ", ".join(sorted(types)[:3])
        raise ValueError(
            f"no tag is O or has a prefix such as B-; found {shown}, … . If these are entity types, set "
            "task.tag_scheme: io; else choose another column for tags"
        )
    return "io"


def tags_from_spans(spans: list[WordSpan], words: int, scheme: str = "iob2") -> list[str]:
    """Spans, in order → tags for so many words, in iob1, iob2 or iobes."""
    tags = ["O"] * words
    for start, end, kind in spans:
        inner = [f"I-{kind}"] * (end - start)
        if scheme == "iob2" or (scheme == "iob1" and start and tags[start - 1][1:] == f"-{kind}"):
            inner[0] = f"B-{kind}"
        if scheme == "iobes":
            inner[0], inner[-1] = f"B-{kind}", f"E-{kind}"
            inner = inner if end - start > 1 else [f"S-{kind}"]
        tags[start:end] = inner
    return tags


def are_tags(names: Sequence[str]) -> bool:
    """Whether names are tags, O among them, and not types: all with a prefix, or none."""
    others = [name for name in names if name != "O"]
    return "O" in names and bool(others) and len({bool(_TAG.fullmatch(name)) for name in others}) == 1


def types_in_tags(tags: Iterable[str]) -> list[str]:
    """The types of tags, in order."""
    return list(dict.fromkeys(tag[2:] if _TAG.fullmatch(tag) else tag for tag in tags if tag != "O"))


def types_of_tags(tags: Sequence[str]) -> list[str]:
    """The types, in order, of a complete set of IOB2 tags: O, and B- and I- of each type.

    Raises:
        ValueError: the set is not complete; the message lists all missing and all unexpected tags.
    """
    split = [_IOB2.fullmatch(tag) for tag in tags]
    types = list(dict.fromkeys(match[2] for match in split if match and match[2]))
    wanted = ["O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]
    faults = [f"'{tag}' is none of them" for tag, match in zip(tags, split, strict=True) if not match]
    faults += [f"'{tag}' is there twice" for tag in dict.fromkeys(tags) if tags.count(tag) > 1]
    faults += [f"'{tag}' is missing" for tag in wanted if tag not in tags]
    if faults or not types:
        raise ValueError("; ".join(faults) or "there is no type at all")
    return types


def _split_tag(tag: str, word: int) -> tuple[str, str]:
    match = _TAG.fullmatch(tag)
    if not match:
        raise ValueError(f"word {word + 1}: expected a tag such as O, B-PER or I-PER, found '{tag}'")
    prefix = match[1] or "O"
    return _SAME_AS.get(prefix, prefix), match[2] or ""


def _check(tag: str, prefix: str, joins: bool, previous: str, scheme: str, word: int) -> None:
    allowed = {"iob1": "OIB", "iob2": "OBI", "iobes": "OBIES", "bmes": "OBIES"}[scheme]
    wrong = prefix not in allowed
    if scheme in ("iob2", "iobes", "bmes"):
        wrong |= prefix in "IE" and not joins
    if scheme in ("iobes", "bmes"):
        wrong |= previous[0] in "BIM" and not joins
    if scheme == "iob1":  # B only separates neighbours of one type
        wrong |= prefix == "B" and previous[2:] != tag[2:]
    if wrong:
        raise ValueError(f"word {word + 1}: '{tag}' cannot follow '{previous}' in {scheme}")

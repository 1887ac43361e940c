import random

import pytest
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB1, IOB2, IOBES, Entities

from peftlab.tasks.labels.tag_schemes import spans_from_tags, tags_from_spans

SCHEMES = {"iob1": IOB1, "iob2": IOB2, "iobes": IOBES}
KINDS = ["PER", "LOC", "B-I"]  # a type may hold a dash


def random_tags(seed, prefixes):
    rng = random.Random(seed)
    tags = ["O", "O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in KINDS)]
    return rng.choices(tags, k=rng.randrange(25))


def random_spans(seed):
    rng = random.Random(seed)
    spans, end = [], 0
    for _ in range(rng.randrange(6)):
        start = end + rng.choice([0, 0, 1, 2])
        end = start + rng.randrange(1, 5)
        spans.append((start, end, rng.choice(KINDS)))
    return spans, end + rng.randrange(3)


def seqeval_spans(tags):
    return [(start, end + 1, kind) for kind, start, end in get_entities(tags)]


def seqeval_scheme_spans(tags, scheme):
    return [(entity.start, entity.end, entity.tag) for entity in Entities([tags], SCHEMES[scheme]).entities[0]]


def write_tags(spans, words, scheme):
    """Spans → tags of a scheme, written down independently of the code under test."""
    tags = ["O"] * words
    for start, end, kind in spans:
        inner = ["I"] * (end - start)
        touches = any(stop == start and other == kind for _, stop, other in spans)
        if scheme == "iob2" or (scheme == "iob1" and touches):
            inner[0] = "B"
        elif scheme == "iobes":
            inner = ["S"] if end - start == 1 else ["B", *inner[1:-1], "E"]
        tags[start:end] = [f"{prefix}-{kind}" for prefix in inner]
    return tags


@pytest.mark.parametrize("prefixes", ["BI", "I", "BIES"])
def test_default_scheme_matches_seqeval(prefixes):
    for seed in range(300):
        tags = random_tags(seed, prefixes)
        assert spans_from_tags(tags) == seqeval_spans(tags)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_valid_tags_parse_same_in_every_scheme(scheme):
    for seed in range(200):
        spans, words = random_spans(seed)
        tags = write_tags(spans, words, scheme)
        assert spans_from_tags(tags, scheme) == spans
        assert spans_from_tags(tags) == spans
        assert seqeval_scheme_spans(tags, scheme) == spans


def test_tags_from_spans_reverse_to_spans():
    for seed in range(200):
        spans, words = random_spans(seed)
        tags = tags_from_spans(spans, words)
        assert tags == write_tags(spans, words, "iob2")
        assert spans_from_tags(tags, "iob2") == spans


def test_bilou_tags_parse_as_iobes():
    spelling = str.maketrans("ES", "LU")
    for seed in range(200):
        spans, words = random_spans(seed)
        tags = [tag[:1].translate(spelling) + tag[1:] for tag in write_tags(spans, words, "iobes")]
        assert spans_from_tags(tags, "iobes") == spans_from_tags(tags) == spans


@pytest.mark.parametrize("scheme", SCHEMES)
def test_strict_scheme_requires_valid_tags(scheme):
    verdicts = set()
    for seed in range(500):
        tags = random_tags(seed, "BIES")[:4]
        spans = seqeval_spans(tags)
        well_formed = write_tags(spans, len(tags), scheme) == tags
        verdicts.add(well_formed)
        if well_formed:
            assert spans_from_tags(tags, scheme) == spans
        else:
            with pytest.raises(ValueError, match=rf"^word \d+: '.*' .* in {scheme}$"):
                spans_from_tags(tags, scheme)
    assert verdicts == {True, False}


@pytest.mark.parametrize(
    ("scheme", "tags", "message"),
    [
        ("iob2", "O I-PER", "word 2: 'I-PER' cannot follow 'O' in iob2"),
        ("iob2", "I-PER", "word 1: 'I-PER' cannot follow 'O' in iob2"),
        ("iob2", "B-PER I-LOC", "word 2: 'I-LOC' cannot follow 'B-PER' in iob2"),
        ("iob2", "B-PER E-PER", "word 2: 'E-PER' cannot follow 'B-PER' in iob2"),
        ("iob2", "S-PER", "word 1: 'S-PER' cannot follow 'O' in iob2"),
        ("iob1", "O B-PER", "word 2: 'B-PER' cannot follow 'O' in iob1"),
        ("iob1", "I-LOC B-PER", "word 2: 'B-PER' cannot follow 'I-LOC' in iob1"),
        ("iob1", "S-PER", "word 1: 'S-PER' cannot follow 'O' in iob1"),
        ("iobes", "B-PER O", "word 2: 'O' cannot follow 'B-PER' in iobes"),
        ("iobes", "B-PER B-PER", "word 2: 'B-PER' cannot follow 'B-PER' in iobes"),
        ("iobes", "S-PER I-PER", "word 2: 'I-PER' cannot follow 'S-PER' in iobes"),
        ("iobes", "O E-PER", "word 2: 'E-PER' cannot follow 'O' in iobes"),
        ("iobes", "O B-PER", "word 2: 'B-PER' must be followed by I- or E- of the same type in iobes"),
        ("auto", "O X-PER", "word 2: expected a tag such as O, B-PER or I-PER, found 'X-PER'"),
        ("auto", "O O PER", "word 3: expected a tag such as O, B-PER or I-PER, found 'PER'"),
        ("auto", "B-", "word 1: expected a tag such as O, B-PER or I-PER, found 'B-'"),
        ("auto", "b-PER", "word 1: expected a tag such as O, B-PER or I-PER, found 'b-PER'"),
        ("auto", "O-PER", "word 1: expected a tag such as O, B-PER or I-PER, found 'O-PER'"),
        ("auto", "I", "word 1: expected a tag such as O, B-PER or I-PER, found 'I'"),
    ],
)
def test_invalid_tag_error_includes_word_number(scheme, tags, message):
    with pytest.raises(ValueError, match=r"^word ") as caught:
        spans_from_tags(tags.split(), scheme)
    assert str(caught.value) == message


@pytest.mark.parametrize("scheme", ["auto", *SCHEMES])
def test_no_spans_without_entity_tags(scheme):
    assert spans_from_tags([], scheme) == []
    assert spans_from_tags(["O", "O"], scheme) == []

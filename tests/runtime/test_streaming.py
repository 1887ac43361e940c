"""`bank.stream`: the answers of `predict`, for rows without end, read no further than they must be."""

import itertools

import pytest

import peftlab
from peftlab.data import Row
from peftlab.errors import AdapterNotFoundError, RecipeError
from tests.architectures import build
from tests.methods.test_method_matrix import METHODS, enlarge_weights
from tests.task_stores import recipe_for
from tests.untrained import publish_untrained

TEXTS = ("the train was late , it rained .", "nobody came .", "it rained .", "the room was clean " * 30)
CHUNK = 4


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr("peftlab.runtime.request.CHUNK_SIZE", CHUNK)


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """Two tasks, of two texts and of one, and an adapter that cannot be routed."""
    folder = tmp_path_factory.mktemp("stream")
    base = enlarge_weights(build("bert", folder))
    for name, method, kind in (
        ("class", "lora", "classes"),
        ("rate", "pfeiffer", "rating"),
        ("soft", "prompt", "topics"),
    ):
        recipe = recipe_for(folder / kind, base, kind)
        publish_untrained(folder / "store", recipe, {"name": name, "method": METHODS[method]})
    return peftlab.load("class", "rate", "soft", store=folder / "store", device="cpu")


def make_rows(count, names=("class", "rate", "soft", "rate")):
    for name, text in itertools.islice(zip(itertools.cycle(names), itertools.cycle(TEXTS), strict=False), count):
        yield name, {"text": text, "text_pair": TEXTS[1]} if name == "rate" else text


class RowCounter:
    """Rows that are counted as they are read."""

    def __init__(self, rows):
        self.rows, self.count = iter(rows), 0

    def __iter__(self):
        return self

    def __next__(self):
        row = next(self.rows)
        self.count += 1
        return row


def assert_same(given, expected):
    assert [answer.adapter for answer in given] == [answer.adapter for answer in expected]
    for one, other in zip(given, expected, strict=True):
        mine, theirs = one.as_dict(), other.as_dict()
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert mine[key] == (pytest.approx(theirs[key], abs=2e-4) if key in ("scores", "value") else theirs[key])


@pytest.mark.parametrize("count", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5 * CHUNK + 2])
def test_stream_matches_predict(bank, count):
    rows = list(make_rows(count))
    given = list(bank.stream(make_rows(count)))
    assert len(given) == count
    alone = [bank.predict(row, adapters=name)[0] for name, row in rows]
    assert_same(given, alone)
    assert_same(bank.predict([row for _, row in rows], adapters=[name for name, _ in rows]), alone)


def test_stream_of_file_rows(bank):
    rows = [("class", Row({"text": text}, f"rows.jsonl:{i}")) for i, text in enumerate(TEXTS * 2)]
    assert_same(list(bank.stream(rows)), bank.predict(TEXTS * 2, adapters="class"))


def test_stream_reads_at_most_one_chunk_ahead(bank):
    reading = RowCounter(make_rows(10 * CHUNK))
    stream = bank.stream(reading)
    assert reading.count == 0
    for place, _ in enumerate(stream):
        chunk = place // CHUNK + 1
        assert reading.count == min((chunk + 1) * CHUNK, 10 * CHUNK)
    assert place + 1 == reading.count == 10 * CHUNK


def test_stream_of_infinite_rows(bank):
    endless = (("class", text) for text in itertools.cycle(TEXTS))
    given = list(itertools.islice(bank.stream(endless), 5 * CHUNK + 1))
    assert_same(given, bank.predict([*TEXTS * 5, TEXTS[0]], adapters="class"))


BAD = {"txt": "nobody came ."}


@pytest.mark.parametrize("place", [1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 2])
def test_invalid_row_error_with_number_after_previous_chunks(bank, place):
    rows = list(make_rows(20))
    rows[place - 1] = ("class", BAD)
    given = []
    with pytest.raises(RecipeError) as told:
        given.extend(bank.stream(rows))  # what extend took until then stays
    [issue] = told.value.errors
    assert issue.where == f"row {place}"
    assert "text" in issue.message
    before = (place - 1) // CHUNK * CHUNK
    assert_same(given, [bank.predict(row, adapters=name)[0] for name, row in rows[:before]])


def test_all_invalid_rows_of_chunk_are_reported(bank):
    rows = list(make_rows(3 * CHUNK))
    rows[CHUNK] = ("class", BAD)
    rows[CHUNK + 2] = ("soft", Row({"no": "text"}, "rows.jsonl:77"))
    rows[2 * CHUNK] = ("class", BAD)
    with pytest.raises(RecipeError) as told:
        list(bank.stream(rows))
    assert [issue.where for issue in told.value.errors] == [f"row {CHUNK + 1}", "rows.jsonl:77"]


@pytest.mark.parametrize("place", [1, CHUNK, CHUNK + 1, 2 * CHUNK + 2])
def test_unknown_name_error_after_previous_chunks(bank, place):
    rows = list(make_rows(12))
    rows[place - 1] = ("clas", TEXTS[0])
    given = []
    with pytest.raises(AdapterNotFoundError, match=r"'clas' was not loaded\. Did you mean 'class'"):
        given.extend(bank.stream(rows))
    before = (place - 1) // CHUNK * CHUNK
    assert_same(given, [bank.predict(row, adapters=name)[0] for name, row in rows[:before]])


def test_error_of_row_iterator_is_raised(bank):
    def failing_rows():
        yield from make_rows(CHUNK + 1)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(bank.stream(failing_rows()))


def test_next_chunk_is_prefetched(bank):
    small = peftlab.load("class", "soft", store=bank.store.folder, device="cpu", slots=1)
    asked = []
    prefetch = small._cache.prefetch
    small._cache.prefetch = lambda editions: asked.extend(map(str, editions)) or prefetch(editions)
    stream = small.stream([*[("class", TEXTS[0])] * CHUNK, *[("soft", TEXTS[0])] * CHUNK])
    next(stream)
    assert asked == ["class@1", "soft@1"]
    assert len(list(stream)) == 2 * CHUNK - 1


def test_failed_stream_releases_adapters(bank):
    with pytest.raises(AdapterNotFoundError):
        list(bank.stream([("class", TEXTS[0]), ("absent", TEXTS[0])]))
    bank._cache._prefetch_pool.submit(int).result()
    assert set(bank._cache._references.values()) == {1}
    assert not bank._cache._files._pins

"""Versions are published, rolled back and removed while threads predict: each answer is of one that was current."""

import gc
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

import peftlab
from peftlab.errors import AdapterNotFoundError, IntegrityError
from peftlab.runtime import Bank
from peftlab.runtime.adapter_files import AdapterFiles
from peftlab.runtime.adapter_template import LoadedAdapter
from peftlab.store import WEIGHTS_FILE, Store
from tests.architectures import build
from tests.methods.test_method_matrix import METHODS, enlarge_weights
from tests.task_stores import recipe_for
from tests.untrained import ANSWERS, damage, publish_changed, publish_constant_label, publish_untrained

TEXTS = ("the train was late , it rained .", "nobody came .", "it rained .")
THREADS = 8


@pytest.fixture(scope="module")
def first_store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hot")
    recipe = recipe_for(folder / "rows", enlarge_weights(build("bert", folder)), "classes")
    for name in ("lora", "pfeiffer", "prompt"):
        publish_untrained(folder / "store", recipe, {"name": name, "method": METHODS[name]})
    return folder / "store"


@pytest.fixture
def store(first_store, tmp_path):
    """With `news`, which says "answer 0", and `other`, which says "answer 39"."""
    folder = shutil.copytree(first_store, tmp_path / "store")
    publish_constant_label(folder, "lora", "answer 0", name="news")
    publish_constant_label(folder, "pfeiffer", "answer 39", name="other")
    return folder


def predict_label(bank, name="news", text=TEXTS[0]):
    [answer] = bank.predict(text, adapters=name)
    return answer.prediction.label


def wait_for(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen in ten seconds")


def count_instances(kind):
    gc.collect()
    return sum(type(thing) is kind for thing in gc.get_objects())


class Current:
    """What the answers of a name may be: whatever was current at any moment of a call."""

    def __init__(self, answer):
        self._lock = threading.Lock()
        self._history = [answer]  # each from the moment when its change began
        self._first_valid = 0  # the earliest that may still be answered

    @contextmanager
    def change_to(self, answer):
        with self._lock:
            self._history.append(answer)
        yield
        with self._lock:
            self._first_valid = len(self._history) - 1

    def at_begin(self):
        with self._lock:
            return self._first_valid

    def labels_since(self, start):
        with self._lock:
            return set(self._history[start:])


@contextmanager
def single_turn_chat(*functions):
    """Threads that call these by turns until the block ends, each at least once; what they raise is raised here."""
    stop, counts = threading.Event(), [0] * THREADS

    def send_request(number):
        while not stop.is_set():
            functions[(number + counts[number]) % len(functions)]()
            counts[number] += 1

    with ThreadPoolExecutor(THREADS) as pool:
        jobs = [pool.submit(send_request, number) for number in range(THREADS)]

        def wait_for_requests(number=2):
            """Wait until each thread has asked so often again, or one has failed."""
            before = list(counts)
            wait_for(
                lambda: (
                    any(job.done() for job in jobs)
                    or all(now - then >= number for now, then in zip(counts, before, strict=True))
                )
            )

        try:
            yield wait_for_requests
            wait_for_requests()
        finally:
            stop.set()
        for job in jobs:
            job.result()


@pytest.mark.parametrize(
    "limits", [{}, {"slots": 1}, {"memory": 60_000}], ids=["no limit", "one slot", "little memory"]
)
def test_answers_come_from_current_versions(store, limits):
    bank = peftlab.load("news", "other", "prompt", store=store, device="cpu", **limits)
    current, prompt = Current("answer 0"), predict_label(bank, "prompt")

    def send_request():
        start = current.at_begin()
        names = ["news", "other", "news", "prompt", "news"]
        given = [answer.prediction.label for answer in bank.predict([*TEXTS[:2], *TEXTS], adapters=names)]
        assert given[1] == "answer 39"
        assert len({given[0], given[2], given[4]}) == 1  # one version throughout a call
        assert given[0] in current.labels_since(start)

    def send_single_request():
        start = current.at_begin()
        assert predict_label(bank) in current.labels_since(start)
        assert predict_label(bank, "prompt", TEXTS[0]) == prompt

    held = len(bank._cache._slots), bank.num_bytes
    with single_turn_chat(send_request, send_single_request) as wait_for_requests:
        for number in range(1, 7):
            with current.change_to(f"answer {number}"):
                published = publish_constant_label(store, "lora", f"answer {number}", name="news")
            wait_for_requests(1)
            if number % 2 == 0:
                with current.change_to(f"answer {number - 1}"):
                    Store(store).rollback("news")
                Store(store).remove(str(published))
                wait_for_requests(1)
        with current.change_to("answer 0"):
            Store(store).rollback("news@1")
    assert predict_label(bank) == "answer 0"
    assert len(bank._cache._slots) <= held[0]
    assert bank.num_bytes == held[1]
    assert set(bank._cache._references.values()) == {1}
    assert not bank._cache._files._pins
    assert bank.warnings == []


def test_memory_is_independent_of_number_of_versions(store):
    bank = peftlab.load("news", "other", store=store, device="cpu")
    before = count_instances(LoadedAdapter), count_instances(AdapterFiles)
    with single_turn_chat(lambda: bank.predict(TEXTS[:2], adapters=["news", "other"])) as wait_for_requests:
        for number in range(1, 9):
            publish_constant_label(store, "news@1", f"answer {number}")
            wait_for_requests(1)
    assert predict_label(bank) == "answer 8"
    assert (count_instances(LoadedAdapter), count_instances(AdapterFiles)) == before


def test_removed_adapter_with_concurrent_requests(store):
    bank = peftlab.load("news", "other", store=store, device="cpu")
    outcomes = set()

    def send_request():
        try:
            outcomes.add(predict_label(bank))
        except AdapterNotFoundError:
            outcomes.add(None)

    def send_other_request():
        assert predict_label(bank, "other") == "answer 39"

    with single_turn_chat(send_request, send_other_request) as wait_for_requests:
        for _ in range(3):
            for step in (lambda: bank.remove("news"), lambda: bank.add("news")):
                step()
                outcomes.clear()
                wait_for_requests()
            assert "answer 0" in outcomes
    bank.remove("news")
    with pytest.raises(AdapterNotFoundError):
        predict_label(bank)


def test_adapter_published_after_remove_uses_new_weights(store):
    bank = peftlab.load("news", "other", store=store, device="cpu")
    saved = Store(store)
    seen, expected = set(), {"answer 0"}

    def send_request():
        try:
            seen.add(predict_label(bank))
        except AdapterNotFoundError:
            seen.add(None)

    def send_other_request():
        assert predict_label(bank, "other") == "answer 39"

    with single_turn_chat(send_request, send_other_request) as wait_for_requests:
        for number in range(1, 6):
            assert saved.remove("news") == [1]
            wait_for_requests()
            assert str(publish_constant_label(store, "lora", f"answer {number}", name="news")) == "news@1"
            wait_for_requests()
            assert predict_label(bank) == f"answer {number}"
            expected |= {f"answer {number}"}
    assert seen <= expected | {None}
    assert bank.warnings == []
    assert len(bank._cache._slots) == 2


def write_invalid_tensors(folder):
    (folder / WEIGHTS_FILE).write_bytes(b"no tensors")


def set_wrong_base(manifest):
    manifest["base"]["fingerprint"] = "0" * 64


def drop_required_fields(manifest):
    del manifest["task"], manifest["max_length"]


def drop_first_tensor(tensors):
    return dict(sorted(tensors.items())[1:])


WRONG = {
    "for another base": ({"told": set_wrong_base}, "news@2 was tuned on .* One bank holds one base."),
    "no tensors": ({"finish": write_invalid_tensors}, f"news@2: {WEIGHTS_FILE} cannot be read: "),
    "not as its configuration says": ({"change": drop_first_tensor}, "news@2 does not fit its base:.*missing"),
    "an incomplete manifest": ({"told": drop_required_fields}, r"is not a valid manifest:\n  task: is missing"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_invalid_version_adds_one_warning(store, changes, message):
    bank = peftlab.load("news", "other", store=store, device="cpu")

    def send_request():
        assert [answer.prediction.label for answer in bank.predict(TEXTS[:2], adapters=["news", "other"])] == [
            "answer 0",
            "answer 39",
        ]

    with single_turn_chat(send_request) as wait_for_requests:
        wait_for_requests()
        with suppress(IntegrityError):  # the publisher of an incomplete manifest hears of it too
            publish_changed(store, "news", **changes)
        wait_for_requests(2)
    [note] = bank.warnings
    assert note.startswith("news still refers to news@1, because news@2 cannot be served: ")
    assert re.search(message, note, re.DOTALL)
    publish_constant_label(store, "lora", "answer 5", name="news")
    assert predict_label(bank) == "answer 5"
    (store / "news" / "current").write_text("2\n")
    assert predict_label(bank) == "answer 5"  # the one that was served last
    assert len(bank.warnings) == 1


def test_damaged_version_adds_one_warning(store):
    bank = peftlab.load("news", "other", store=store, device="cpu")
    saved = Store(store)
    publish_constant_label(store, "news", "answer 1")
    saved.rollback("news")
    damage(saved.resolve("news@2"))
    (store / "news" / "current").write_text("2\n")  # as it is where the damage came after publishing
    with single_turn_chat(lambda: predict_label(bank)) as wait_for_requests:
        wait_for_requests(2)
    assert predict_label(bank) == "answer 0"
    [note] = bank.warnings
    assert note.startswith(
        "news still refers to news@1, because news@2 cannot be served: news@2 is not what was published"
    )
    saved.rollback("news")
    assert predict_label(bank) == "answer 0"
    assert len(bank.warnings) == 1


def test_stream_uses_first_version(store, monkeypatch):
    monkeypatch.setattr("peftlab.runtime.request.CHUNK_SIZE", 2)
    bank = peftlab.load("news", "other", store=store, device="cpu")
    reads = []
    read = bank._cache._read_files
    monkeypatch.setattr(bank._cache, "_read_files", lambda edition: reads.append(str(edition)) or read(edition))
    stream = bank.stream(("news", text) for text in TEXTS * 5)
    given = [next(stream).prediction.label]
    publish_constant_label(store, "lora", "answer 1", name="news")
    assert predict_label(bank) == "answer 1"
    publish_constant_label(store, "lora", "answer 2", name="news")
    Store(store).remove("news@1")
    given += [next(stream).prediction.label for _ in range(5)]
    assert predict_label(bank) == "answer 2"
    bank.remove("news")
    given += [answer.prediction.label for answer in stream]
    assert given == ["answer 0"] * 15
    assert reads == ["news@2", "news@3"]  # what it began with is not read again
    assert [edition.name for edition in bank._cache._files._entries] == ["other"]


def test_closed_stream_releases_adapters(store, monkeypatch):
    monkeypatch.setattr("peftlab.runtime.request.CHUNK_SIZE", 1)
    bank = peftlab.load("news", store=store, device="cpu")
    before = count_instances(LoadedAdapter)
    stream = bank.stream(("news", text) for text in TEXTS)
    next(stream)
    publish_constant_label(store, "lora", "answer 1", name="news")
    assert predict_label(bank) == "answer 1"
    assert count_instances(LoadedAdapter) == before + 1
    stream.close()
    bank._cache._prefetch_pool.submit(int).result()
    assert count_instances(LoadedAdapter) == before


def test_concurrent_publish_keeps_last_version_current(store):
    bank = Bank(Store(store), device="cpu")
    bank.add("news")
    with single_turn_chat(lambda: ANSWERS.index(predict_label(bank))), ThreadPoolExecutor(4) as publishers:
        for number in range(1, 9):
            publishers.submit(publish_constant_label, store, "lora", f"answer {number}", name="news")
    last = Store(store).resolve("news")
    assert last.version == 9
    alone = peftlab.load("news", store=store, device="cpu")
    assert predict_label(bank) == predict_label(alone)
    assert str(bank.adapter("news")) == "news@9"

"""Publish, find, verify, roll back and remove adapters; hold the folder of a tuning run."""

import json
import shutil
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from peftlab.errors import AdapterNotFoundError, IntegrityError, StoreError, TuningInterrupted
from peftlab.store import MANIFEST_FILE, WEIGHTS_FILE, Store
from tests.store.example_manifest import example_manifest


def write_files(text="weights"):
    def write(folder):
        (folder / WEIGHTS_FILE).write_text(text)
        (folder / "README.md").write_text("card")
        return example_manifest()

    return write


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    for text in ("one", "two", "three"):
        store.publish("ner-news", write_files(text))
    return store


def test_publish_increments_version_and_sets_current(store):
    assert store.versions("ner-news") == [1, 2, 3]
    assert str(store.resolve("ner-news")) == "ner-news@3"
    assert (store.resolve("ner-news@2").folder / WEIGHTS_FILE).read_text() == "two"
    assert store.names() == ["ner-news"]


def test_publish_leaves_no_staging_files(store):
    adapter = store.verify("ner-news")
    assert {f.name for f in adapter.folder.iterdir()} == {WEIGHTS_FILE, "README.md", MANIFEST_FILE}
    assert not [f for f in (store.folder / "ner-news").iterdir() if f.name.startswith(".staging")]


def test_read_files_returns_verified_content(store):
    adapter, contents = store.read_files("ner-news@2", (WEIGHTS_FILE, "absent.txt"))
    assert (str(adapter), contents) == ("ner-news@2", {WEIGHTS_FILE: b"two"})
    (adapter.folder / WEIGHTS_FILE).write_text("forged")
    with pytest.raises(IntegrityError, match=f"{WEIGHTS_FILE}: changed"):
        store.read_files("ner-news@2", (WEIGHTS_FILE,))


def test_read_files_opens_each_file_once(store, monkeypatch):
    folder, opened = store.resolve("ner-news").folder, []
    io_open = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *args, **kw: opened.append(path.name) or io_open(path, *args, **kw))
    store.read_files("ner-news", (WEIGHTS_FILE,))
    assert sorted(opened.count(file.name) for file in folder.iterdir()) == [1, 1, 1]


@pytest.mark.parametrize("name", [WEIGHTS_FILE, "README.md", MANIFEST_FILE])
def test_verify_detects_any_bit_error(store, name):
    file = store.resolve("ner-news").folder / name
    original = file.read_bytes()
    for position in range(len(original)):
        damaged = bytearray(original)
        damaged[position] ^= 0x01
        file.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=name):
            store.verify("ner-news")
    file.write_bytes(original)
    store.verify("ner-news")


def test_verify_lists_missing_and_added_files(store):
    folder = store.resolve("ner-news").folder
    (folder / "README.md").unlink()
    (folder / "pickle.bin").write_text("x")
    with pytest.raises(IntegrityError) as error:
        store.verify("ner-news")
    assert "README.md: missing" in str(error.value)
    assert "pickle.bin: was not published with it" in str(error.value)


def test_resolve_changed_manifest_raises_integrity_error(store):
    file = store.resolve("ner-news").folder / MANIFEST_FILE
    manifest = json.loads(file.read_text())
    manifest["scores"]["test"]["f1"] = 0.99
    file.write_text(json.dumps(manifest, indent=2))
    with pytest.raises(IntegrityError, match=MANIFEST_FILE):
        store.resolve("ner-news")


def test_version_without_manifest_is_ignored(store):
    (store.folder / "ner-news" / "3" / MANIFEST_FILE).unlink()
    assert store.versions("ner-news") == [1, 2]
    with pytest.raises(IntegrityError, match="rollback ner-news@2"):
        store.resolve("ner-news")
    assert store.publish("ner-news", write_files()).version == 4


def test_publish_writer_error_leaves_store_unchanged(store):
    def write(folder):
        (folder / "half.txt").write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        store.publish("ner-news", write)
    assert store.versions("ner-news") == [1, 2, 3]
    assert not list((store.folder / "ner-news").glob(".staging*"))


def test_rollback_to_previous_or_given_version(store):
    assert str(store.rollback("ner-news")) == "ner-news@2"
    assert store.resolve("ner-news").version == 2
    assert str(store.rollback("ner-news@3")) == "ner-news@3"
    store.rollback("ner-news@1")
    with pytest.raises(AdapterNotFoundError, match="oldest"):
        store.rollback("ner-news")
    assert store.publish("ner-news", write_files()).version == 4
    assert store.resolve("ner-news").version == 4


def test_rollback_with_corrupt_pointer_or_version(store):
    pointer = store.folder / "ner-news" / "current"
    pointer.write_text("../../etc")
    with pytest.raises(IntegrityError, match="holds"):
        store.resolve("ner-news")
    store.rollback("ner-news@3")
    assert store.resolve("ner-news").version == 3
    (store.folder / "ner-news" / "2" / "README.md").write_text("forged")
    with pytest.raises(IntegrityError, match=r"README\.md: changed"):
        store.rollback("ner-news@2")
    assert store.resolve("ner-news").version == 3


def test_remove_version_or_adapter_but_not_current(store):
    with pytest.raises(StoreError, match="Roll back first"):
        store.remove("ner-news@3")
    assert store.remove("ner-news@1") == [1]
    assert store.versions("ner-news") == [2, 3]
    assert store.remove("ner-news") == [2, 3]
    assert store.names() == []
    assert not (store.folder / "ner-news").exists()


@pytest.mark.parametrize("name", ["../other", "a/b", "Ner", "x", "", ".", "ner news", "a" * 64, "ner_news"])
def test_invalid_name_raises_adapter_not_found(store, name):
    for method in (store.resolve, store.remove, store.rollback, store.verify):
        with pytest.raises(AdapterNotFoundError):
            method(name)
    with pytest.raises(AdapterNotFoundError):
        store.publish(name, write_files())


@pytest.mark.parametrize("version", ["0", "-1", "4", "latest", "../1", "01", ""])
def test_missing_version_raises_adapter_not_found(store, version):
    with pytest.raises(AdapterNotFoundError, match="there is 1, 2, 3"):
        store.resolve(f"ner-news@{version}")


def test_missing_name_suggests_nearest(store):
    with pytest.raises(AdapterNotFoundError, match="Did you mean 'ner-news'"):
        store.resolve("ner-new")


def test_concurrent_publish_assigns_distinct_versions(tmp_path):
    store = Store(tmp_path / "store")
    threads = [threading.Thread(target=store.publish, args=("ner-news", write_files(str(i)))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.versions("ner-news") == list(range(1, 9))
    for version in store.versions("ner-news"):
        store.verify(f"ner-news@{version}")


def test_reading_missing_store_does_not_create_folder(tmp_path):
    store = Store(tmp_path / "absent")
    assert store.names() == []
    with pytest.raises(AdapterNotFoundError, match="Available: none"):
        store.resolve("ner-news")
    assert not store.folder.exists()


def test_tuning_run_in_read_only_store_raises_store_error(tmp_path):
    (tmp_path / "store").write_text("a file, not a folder")
    with (
        pytest.raises(StoreError, match="cannot be written"),
        Store(tmp_path / "store").tuning_run("ner-news", 1, resume=False),
    ):
        pytest.fail("the run must not start")


def test_tuning_run_without_free_space_raises_store_error(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=3_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with (
        pytest.raises(StoreError, match="3 MB of free space, and this run may need 20 MB"),
        Store(tmp_path).tuning_run("ner-news", 20_000_000, resume=False),
    ):
        pytest.fail("the run must not start")


def test_concurrent_tuning_run_raises_store_error(tmp_path):
    store = Store(tmp_path)
    with (
        store.tuning_run("ner-news", 1, resume=False),
        pytest.raises(StoreError, match="another run is tuning 'ner-news'"),
        store.tuning_run("ner-news", 1, resume=False),
    ):
        pytest.fail("the second run must not start")


def test_disk_full_during_tuning_run_raises_store_error(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    sizes = iter([usage, usage._replace(free=1000)])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: next(sizes))
    with pytest.raises(StoreError, match="is full"), Store(tmp_path).tuning_run("ner-news", 1, resume=False):
        raise RuntimeError("PytorchStreamWriter failed writing file")


def test_keyboard_interrupt_raises_tuning_interrupted(tmp_path):
    with pytest.raises(TuningInterrupted, match="--resume"), Store(tmp_path).tuning_run("ner-news", 1, resume=False):
        raise KeyboardInterrupt


def failing_run(store, *, resume):
    """Files that the run found in its folder; it leaves one more, and fails."""
    with suppress(RuntimeError), store.tuning_run("ner-news", 1, resume=resume) as folder:
        found = [file.name for file in folder.iterdir()]
        (folder / f"checkpoint-{len(found)}").write_text("x")
        raise RuntimeError
    return found


def test_failed_run_keeps_checkpoints_for_resume(tmp_path):
    store = Store(tmp_path)
    assert failing_run(store, resume=False) == []
    assert failing_run(store, resume=True) == ["checkpoint-0"]
    with store.tuning_run("ner-news", 1, resume=False) as folder:
        assert list(folder.iterdir()) == []
    assert not folder.exists()

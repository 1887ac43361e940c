import json
import shutil
import threading
from contextlib import suppress

import pytest

from peftlab.errors import AdapterNotFoundError, IntegrityError, StoreError, TuningInterrupted
from peftlab.store import MANIFEST_FILE, Store
from tests.store.manifests import example_manifest


def write_files(text="weights"):
    def write(folder):
        (folder / "adapter_model.safetensors").write_text(text)
        (folder / "README.md").write_text("card")
        return example_manifest()

    return write


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "store")
    for text in ("one", "two", "three"):
        made.publish("ner-news", write_files(text))
    return made


def test_versions_count_up_and_the_name_means_the_newest(store):
    assert store.versions("ner-news") == [1, 2, 3]
    assert str(store.resolve("ner-news")) == "ner-news@3"
    assert (store.resolve("ner-news@2").folder / "adapter_model.safetensors").read_text() == "two"
    assert store.names() == ["ner-news"]


def test_a_published_adapter_verifies_and_holds_nothing_else(store):
    adapter = store.verify("ner-news")
    assert {f.name for f in adapter.folder.iterdir()} == {"adapter_model.safetensors", "README.md", MANIFEST_FILE}
    assert not [f for f in (store.folder / "ner-news").iterdir() if f.name.startswith(".staging")]


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "README.md", MANIFEST_FILE])
def test_any_flipped_byte_is_found_and_its_file_named(store, name):
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


def test_missing_and_added_files_are_all_told(store):
    folder = store.resolve("ner-news").folder
    (folder / "README.md").unlink()
    (folder / "pickle.bin").write_text("x")
    with pytest.raises(IntegrityError) as error:
        store.verify("ner-news")
    assert "README.md: missing" in str(error.value)
    assert "pickle.bin: was not published with it" in str(error.value)


def test_a_manifest_with_other_values_and_a_right_looking_hash_is_refused(store):
    file = store.resolve("ner-news").folder / MANIFEST_FILE
    manifest = json.loads(file.read_text())
    manifest["scores"]["test"]["f1"] = 0.99
    file.write_text(json.dumps(manifest, indent=2))
    with pytest.raises(IntegrityError, match=MANIFEST_FILE):
        store.resolve("ner-news")


def test_a_folder_without_manifest_does_not_exist_and_its_number_is_not_reused(store):
    (store.folder / "ner-news" / "3" / MANIFEST_FILE).unlink()
    assert store.versions("ner-news") == [1, 2]
    with pytest.raises(IntegrityError, match="rollback ner-news@2"):
        store.resolve("ner-news")
    assert store.publish("ner-news", write_files()).version == 4


def test_a_failing_writer_publishes_nothing(store):
    def write(folder):
        (folder / "half.txt").write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        store.publish("ner-news", write)
    assert store.versions("ner-news") == [1, 2, 3]
    assert not list((store.folder / "ner-news").glob(".staging*"))


def test_rollback_goes_back_one_or_to_a_version(store):
    assert str(store.rollback("ner-news")) == "ner-news@2"
    assert store.resolve("ner-news").version == 2
    assert str(store.rollback("ner-news@3")) == "ner-news@3"
    store.rollback("ner-news@1")
    with pytest.raises(AdapterNotFoundError, match="oldest"):
        store.rollback("ner-news")
    assert store.publish("ner-news", write_files()).version == 4
    assert store.resolve("ner-news").version == 4


def test_rollback_mends_a_damaged_pointer_and_refuses_a_damaged_version(store):
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


def test_remove_takes_one_version_or_all_but_never_the_current_one_alone(store):
    with pytest.raises(StoreError, match="Roll back first"):
        store.remove("ner-news@3")
    assert store.remove("ner-news@1") == [1]
    assert store.versions("ner-news") == [2, 3]
    assert store.remove("ner-news") == [2, 3]
    assert store.names() == []
    assert not (store.folder / "ner-news").exists()


@pytest.mark.parametrize("name", ["../other", "a/b", "Ner", "x", "", ".", "ner news", "a" * 64, "ner_news"])
def test_a_name_is_checked_before_it_touches_a_path(store, name):
    for act in (store.resolve, store.remove, store.rollback, store.verify):
        with pytest.raises(AdapterNotFoundError):
            act(name)
    with pytest.raises(AdapterNotFoundError):
        store.publish(name, write_files())


@pytest.mark.parametrize("version", ["0", "-1", "4", "latest", "../1", "01", ""])
def test_a_version_must_be_there(store, version):
    with pytest.raises(AdapterNotFoundError, match="there is 1, 2, 3"):
        store.resolve(f"ner-news@{version}")


def test_a_miss_gets_the_nearest_name(store):
    with pytest.raises(AdapterNotFoundError, match="Did you mean 'ner-news'"):
        store.resolve("ner-new")


def test_concurrent_publishers_get_versions_of_their_own(tmp_path):
    store = Store(tmp_path / "store")
    threads = [threading.Thread(target=store.publish, args=("ner-news", write_files(str(i)))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.versions("ner-news") == list(range(1, 9))
    for version in store.versions("ner-news"):
        store.verify(f"ner-news@{version}")


def test_reading_an_absent_store_creates_nothing(tmp_path):
    store = Store(tmp_path / "absent")
    assert store.names() == []
    with pytest.raises(AdapterNotFoundError, match="There: none"):
        store.resolve("ner-news")
    assert not store.folder.exists()


def test_an_unwritable_store_is_told_before_anything_is_done(tmp_path):
    (tmp_path / "store").write_text("a file, not a folder")
    with (
        pytest.raises(StoreError, match="cannot be written"),
        Store(tmp_path / "store").tuning_run("ner-news", 1, resume=False),
    ):
        pytest.fail("the run must not start")


def test_a_full_disk_is_told_with_both_numbers(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=3_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with (
        pytest.raises(StoreError, match="3 MB of free space, and this run may need 20 MB"),
        Store(tmp_path).tuning_run("ner-news", 20_000_000, resume=False),
    ):
        pytest.fail("the run must not start")


def test_one_run_of_a_name_at_a_time(tmp_path):
    store = Store(tmp_path)
    with (
        store.tuning_run("ner-news", 1, resume=False),
        pytest.raises(StoreError, match="another run is tuning 'ner-news'"),
        store.tuning_run("ner-news", 1, resume=False),
    ):
        pytest.fail("the second run must not start")


def test_a_disk_that_fills_up_during_the_run_is_told_as_such(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    sizes = iter([usage, usage._replace(free=1000)])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: next(sizes))
    with pytest.raises(StoreError, match="is full"), Store(tmp_path).tuning_run("ner-news", 1, resume=False):
        raise RuntimeError("PytorchStreamWriter failed writing file")


def test_ctrl_c_after_training_says_how_to_go_on(tmp_path):
    with pytest.raises(TuningInterrupted, match="--resume"), Store(tmp_path).tuning_run("ner-news", 1, resume=False):
        raise KeyboardInterrupt


def failing_run(store, *, resume):
    """Files that the run found in its folder; it leaves one more, and fails."""
    with suppress(RuntimeError), store.tuning_run("ner-news", 1, resume=resume) as folder:
        found = [file.name for file in folder.iterdir()]
        (folder / f"checkpoint-{len(found)}").write_text("x")
        raise RuntimeError
    return found


def test_checkpoints_outlive_a_failed_run_until_resumed_or_begun_anew(tmp_path):
    store = Store(tmp_path)
    assert failing_run(store, resume=False) == []
    assert failing_run(store, resume=True) == ["checkpoint-0"]
    with store.tuning_run("ner-news", 1, resume=False) as folder:
        assert list(folder.iterdir()) == []
    assert not folder.exists()

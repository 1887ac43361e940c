"""The feature cache: cached features equal encoded features, and invalid files are encoded again."""

import hashlib
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from peftlab.base import Base, BaseFiles, load_with_head
from peftlab.data import load_rows
from peftlab.data.cache import evict_oldest, read_cache, write_cache
from peftlab.errors import ErrorCollector
from peftlab.recipe import read_recipe
from peftlab.tasks import build_task
from peftlab.tasks.inputs.encoding import encode_examples
from peftlab.tasks.inputs.text import TextInputs, load_tokenizer
from peftlab.tasks.prediction import compute_outputs, predict_examples, predict_features
from peftlab.tuning import feature_cache, tune
from peftlab.tuning.dataset import TuningDataset
from peftlab.tuning.encoding import encode_dataset
from peftlab.tuning.feature_cache import cached_features
from peftlab.tuning.progress import Progress
from tests.task_stores import KINDS, recipe_for


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def base(tiny_base):
    files = BaseFiles("tiny", tiny_base, "local folder")
    return Base(files, torch.nn.Linear(1, 1), TextInputs.load(files), [], 0, 0, None, 64, "")


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def built(tmp_path, tiny_base):
    """A function: kind → its task, the examples of each split and their ledgers."""

    def build(kind):
        with ErrorCollector() as errors:
            recipe = read_recipe(recipe_for(tmp_path / kind, tiny_base, kind), {}, errors)
            return build_task(recipe.task, load_rows(recipe.data, errors), errors)

    return build


@pytest.fixture
def no_encoding(monkeypatch):
    """A function that makes encoding fail, so that only the cache can be used."""

    def refuse(*_, **__):
        raise AssertionError("encoded again")

    return lambda: monkeypatch.setattr(feature_cache, "encode_examples", refuse)


def cached_files(cache):
    return sorted((cache / "features").iterdir())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("max_length", [20, 64])
def test_cached_features_equal_encoded_features(cache, base, built, kind, no_encoding, max_length, training):
    task, examples, _ = built(kind)
    rows = examples["train"]
    plain = [task.encode([row], base.inputs, max_length, training=training)[0] for row in rows]  # row by row
    first = cached_features(task, rows, base, max_length, training=training)
    no_encoding()
    second = cached_features(task, rows, base, max_length, training=training)
    assert first == second == plain
    assert repr(first) == repr(second) == repr(plain)  # tuples stay tuples, integers stay integers
    assert {type(feature) for row in second for feature in row} == {task.inputs_class.feature_class}


def test_ledger_equal_with_cached_features(cache, base, built, kind, no_encoding):
    ledgers = []
    for _ in range(2):
        task, examples, ledger = built(kind)
        max_length = 12 if kind == "characters" else 20
        encode_dataset(TuningDataset(None, task, examples, ledger), base, max_length, 1.0, Progress())
        ledgers.append(ledger)
        no_encoding()
    assert ledgers[0] == ledgers[1]
    assert ledgers[0]["train"].used == len(KINDS[kind][1])
    assert ledgers[0]["validation"].used == 6


def test_empty_row_is_dropped_with_and_without_cache(cache, base, built, no_encoding):
    for _ in range(2):
        task, examples, ledgers = built("entities")
        examples["train"][3] = replace(examples["train"][3], words=(), spans=())
        encoded = encode_dataset(TuningDataset(None, task, examples, ledgers), base, 64, 1.0, Progress())
        assert encoded.features["train"][3] == []
        assert (ledgers["train"].used, ledgers["train"].dropped) == (11, {"no words in it": 1})
        no_encoding()


def test_second_run_without_encoding_matches_first(cache, tmp_path, tiny_base, kind, no_encoding):
    recipe = recipe_for(tmp_path / kind, tiny_base, kind)
    first = tune(recipe, store=tmp_path / "store")
    no_encoding()
    second = tune(recipe, store=tmp_path / "store")
    assert len(cached_files(cache)) == 3
    assert first.scores == second.scores
    assert first.ledgers == second.ledgers
    one, other = (load_file(run.adapter.folder / "adapter_model.safetensors") for run in (first, second))
    assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())


def test_cached_features_match_predictions(base, built, kind):
    task, examples, _ = built(kind)
    model, _ = load_with_head(base.files, task)
    rows = examples["train"]
    features = encode_examples(task, base.inputs, rows, max_length=20, training=False)
    output = []
    forward_function = partial(
        compute_outputs,
        task,
        model,
        base.inputs,
        batch_size=5,
        on_progress=lambda done, total: output.append((done, total)),
    )
    apart = predict_features(task, rows, features, forward_function)
    assert apart == predict_examples(task, model, base.inputs, rows, max_length=20, batch_size=5)
    windows = sum(map(len, features))
    assert output[-1] == (windows, windows)


def test_rows_are_encoded_in_batches_with_progress(base, built, kind, monkeypatch):
    monkeypatch.setattr("peftlab.tasks.inputs.encoding.AT_A_TIME", 5)
    task, examples, _ = built(kind)
    rows = [row for split in examples.values() for row in split]
    output = []
    features = encode_examples(
        task,
        base.inputs,
        rows,
        max_length=20,
        training=True,
        on_progress=lambda done, total: output.append((done, total)),
    )
    assert features == [task.encode([row], base.inputs, 20, training=True)[0] for row in rows]
    assert [done for done, _ in output] == [*range(5, len(rows), 5), len(rows)]
    assert encode_examples(task, base.inputs, [], max_length=20, training=True) == []


def test_every_dependency_changes_cache_key(cache, base, built):
    task, examples, _ = built("classes")
    rows = examples["train"]

    def cached(task=task, rows=rows, base=base, max_length=64, training=True):
        before = len(cached_files(cache)) if cache.exists() else 0
        cached_features(task, rows, base, max_length, training=training)
        return len(cached_files(cache)) - before

    assert cached() == 1
    assert cached(rows=[replace(row, where="elsewhere:1") for row in rows]) == 0
    assert cached(rows=[replace(rows[0], text="it was late"), *rows[1:]]) == 1
    assert cached(rows=[replace(rows[0], labels=("fair",)), *rows[1:]]) == 1
    assert cached(rows=[replace(rows[0], text_pair="late"), *rows[1:]]) == 1
    assert cached(rows=rows[1:]) == cached(rows=rows[::-1]) == 1
    assert cached(max_length=63) == cached(training=False) == 1
    assert cached(task=type(task)(labels=task.labels[::-1])) == 1
    other = load_tokenizer(base.files)
    other.add_tokens(["lovelace"])
    assert cached(base=replace(base, inputs=TextInputs(other))) == 1
    assert cached() == 0


KEY = """
import sys
from pathlib import Path
from peftlab.base import Base, BaseFiles
from peftlab.data import Row
from peftlab.tasks import TASKS
from peftlab.tasks.inputs.text import TextInputs
from peftlab.tuning.feature_cache import _key
files = BaseFiles("tiny", Path(sys.argv[1]), "local folder")
task = TASKS["token-classification"].build(labels=["LOC", "PER"])
row = task.read(Row({"text": "Ada left Rome", "entities": [{"start": 9, "end": 13, "label": "LOC"}]}, "a:1"))
print(_key(task, [row], Base(files, None, TextInputs.load(files), [], 0, 0, None, 64, ""), 64, True))
"""


def test_cache_key_is_same_in_every_process(tiny_base):
    environments = [{**os.environ, "PYTHONHASHSEED": seed} for seed in "12"]
    command = [sys.executable, "-c", KEY, str(tiny_base)]
    first, second = (
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        for environment in environments
    )
    assert first == second
    assert len(first) == 65


def with_new_hash(content):
    body = content.partition(b"\n")[2]
    body = json.dumps(json.loads(body)[1:]).encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-20],
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b'"input_ids":[2', b'"input_ids":[3', 1),
        lambda content: b"\x80\x04K\x01.",
        with_new_hash,  # a valid hash, but other rows
    ],
    ids=["empty", "its end missing", "half", "a changed number", "no JSON", "a row less"],
)
def test_invalid_cache_file_is_written_again(cache, base, built, damage):
    task, examples, _ = built("classes")
    rows = examples["train"]
    plain = cached_features(task, rows, base, 64, training=True)
    [file] = cached_files(cache)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert file.read_bytes() != whole
    assert cached_features(task, rows, base, 64, training=True) == plain
    assert file.read_bytes() == whole
    assert cached_files(cache) == [file]


def test_read_only_cache_is_ignored(tmp_path, monkeypatch, base, built):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path / "file" / "cache"))
    task, examples, _ = built("classes")
    plain = [task.encode([row], base.inputs, 64, training=True)[0] for row in examples["train"]]
    assert cached_features(task, examples["train"], base, 64, training=True) == plain
    assert (tmp_path / "file").read_text() == "not a folder"


def test_full_disk_leaves_no_partial_file(cache, monkeypatch):
    def full(path, content):
        with path.open("wb") as file:
            file.write(content[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    write_cache("features/some.json", b"content")
    assert read_cache("features/some.json") is None
    assert cached_files(cache) == []


def test_lru_file_is_evicted(cache):
    for age, name in enumerate(["new", "old", "older"]):
        write_cache(f"features/{name}", b"12345")
        os.utime(cache / "features" / name, (1e9 - age, 1e9 - age))
    assert read_cache("features/older") == b"12345"  # now the most recently used
    evict_oldest("features", 15)
    assert len(cached_files(cache)) == 3
    evict_oldest("features", 14)
    assert [file.name for file in cached_files(cache)] == ["new", "older"]
    evict_oldest("features", 5)
    assert [file.name for file in cached_files(cache)] == ["older"]
    evict_oldest("nothing there", 5)


def test_feature_cache_size_limit(cache, base, built, monkeypatch):
    task, examples, _ = built("classes")
    monkeypatch.setattr(feature_cache, "LIMIT", 0)
    cached_features(task, examples["train"], base, 64, training=True)
    assert cached_files(cache) == []


def test_progress_reports_only_encoded_rows(cache, base, built):
    progress = []

    class RecordProgress(Progress):
        def track_encoding(self, split):
            return nullcontext(lambda done, total: progress.append((split, done, total)))

    for _ in range(2):
        task, examples, ledgers = built("classes")
        encode_dataset(TuningDataset(None, task, examples, ledgers), base, 64, 1.0, RecordProgress())
    assert progress == [("train", 12, 12), ("validation", 6, 6), ("test", 8, 8)]

"""The typed manifest: reads every format, keeps every field, and raises only IntegrityError."""

import copy
import json
import random
from pathlib import Path

import pytest

from peftlab.errors import IntegrityError
from peftlab.store import DataInfo, ImportInfo, LedgerInfo, Manifest, StartInfo, Store, TaskInfo
from peftlab.store.manifest import FORMAT, canonical_text
from peftlab.tasks import Confusion, Scores
from tests.store.example_manifest import example_manifest

FORMAT_1_PATHS = sorted((Path(__file__).parents[2] / "adapters").glob("*/*/peftlab.json"))
V1_DEFAULTS = {"format": 2, "head_modules": None, "reload_difference": None}
V1_BASE_DEFAULTS = {"quantization": None, "own_head": [], "bytes": None}
STARTED_FROM = {"adapter": "a@1", "manifest_sha256": "c" * 64, "tensors": 4, "head": False, "anew": ["x"], "left": []}
IMPORTED = {
    "source": "someone/classes",
    "place": "Hub",
    "commit": "abc",
    "peft_version": "0.21.2",
    "head_order": [1, 0],
    "notes": ["It names another base."],
    "difference": 1e-6,
    "largest_logit": 2.5,
}
LEDGER = {
    "source": "train.txt",
    "read": 5,
    "used": 4,
    "dropped": {"empty": 1},
    "cut": 2,
    "targets": 9,
    "targets_lost": 1,
    "notes": {"widened": 3},
}
SCORES = {
    "f1": 0.5,
    "exact": 1,
    "by_label": {"PER": {"f1": 0.5, "support": 2}},
    "signatures": {"f1": "seqeval"},
    "confusion": {"labels": ["a", "b"], "counts": [[1, 0], [2, 3]]},
}


def values_of(path):
    return json.loads(path.read_text(encoding="utf8"))


def full_manifest():
    """A manifest with every optional field."""
    return example_manifest(
        scores={"test": Scores({"f1": 0.5}, {"PER": {"support": 2}}, Confusion(["a"], [[1]]), {"f1": "seqeval"})},
        data=DataInfo(sha256="2" * 64, ledger={"train": LedgerInfo.model_validate(LEDGER)}),
        started_from=StartInfo.model_validate({**STARTED_FROM, "anew": ("x",), "left": ()}),
        imported=ImportInfo.model_validate({**IMPORTED, "head_order": (1, 0), "notes": ("It names another base.",)}),
        reload_difference=0.0,
    )


def write(path, values):
    """Write values as a manifest whose sha256 is right."""
    path.write_text(canonical_text(values), encoding="utf8")
    return path


# --- format 1


@pytest.mark.parametrize("path", FORMAT_1_PATHS, ids=lambda path: path.parts[-3])
def test_format_1_upgrade_keeps_every_field(path):
    published, upgraded = values_of(path), Manifest.read(path).to_dict()
    expected = {**V1_DEFAULTS, **published, "base": {**V1_BASE_DEFAULTS, **published["base"]}}
    assert upgraded == expected
    assert json.dumps(upgraded, sort_keys=True) == json.dumps(expected, sort_keys=True)  # 1 is not 1.0


@pytest.mark.parametrize("path", FORMAT_1_PATHS, ids=lambda path: path.parts[-3])
def test_format_1_adapter_builds_task(path):
    adapter = Store(path.parents[2]).verify(f"{path.parts[-3]}@{path.parts[-2]}")
    assert TaskInfo.from_task(adapter.task).to_dict() == values_of(path)["task"]
    assert adapter.manifest.files.keys() == {file.name for file in adapter.folder.iterdir()} - {"peftlab.json"}


def test_format_1_without_task_options():
    values = values_of(FORMAT_1_PATHS[1])
    del values["task"]["options"], values["task"]["learned"]
    manifest = Manifest.from_dict(values)
    assert (manifest.task.options, manifest.task.state) == ({}, {})
    assert (manifest.base.quantization, manifest.base.memory, manifest.base.pretrained_head) == (None, None, ())
    assert manifest.head_modules is None


def test_format_1_optional_sections():
    values = {**values_of(FORMAT_1_PATHS[0]), "started_from": STARTED_FROM, "imported": IMPORTED}
    values["base"] |= {"quantization": "8bit", "own_head": ["lm_head"], "bytes": {"fp32": 8, "in memory": 2}}
    values["data"]["ledger"]["train"] = LEDGER
    values["scores"]["test"] = SCORES
    manifest = Manifest.from_dict(values)
    assert (manifest.base.memory.fp32, manifest.base.memory.in_memory) == (8, 2)
    assert manifest.base.pretrained_head == ("lm_head",)
    start, ledger = manifest.started_from, manifest.data.ledger["train"]
    assert (start.num_tensors, start.with_head, start.newly_initialized, start.skipped) == (4, False, ("x",), ())
    assert (ledger.truncated, ledger.num_lost_targets, ledger.warnings) == (2, 1, {"widened": 3})
    assert manifest.imported.head_order == (1, 0)
    scores = manifest.scores["test"]
    assert (scores.values, scores.signatures) == ({"f1": 0.5, "exact": 1}, {"f1": "seqeval"})
    assert scores.confusion == Confusion(["a", "b"], [[1, 0], [2, 3]])
    assert manifest.to_dict() == {**V1_DEFAULTS, **values}


# --- format 2


@pytest.mark.parametrize("build", [example_manifest, full_manifest])
def test_manifest_round_trip(tmp_path, build):
    adapter = Store(tmp_path).publish("ner-news", lambda folder: build())
    written = values_of(adapter.folder / "peftlab.json")
    assert written["format"] == FORMAT
    assert written == adapter.manifest.to_dict()
    assert adapter.manifest == build().finalize("ner-news", 1, {}).model_copy(
        update={name: getattr(adapter.manifest, name) for name in ("created", "manifest_sha256")}
    )
    assert (adapter.folder / "peftlab.json").read_text() == adapter.manifest.to_json()


def test_optional_sections_are_omitted_by_default():
    assert not example_manifest().to_dict().keys() & {"started_from", "imported"}
    values = full_manifest().to_dict()
    assert (values["started_from"], values["imported"]) == (STARTED_FROM, IMPORTED)
    assert values["data"]["ledger"]["train"] == LEDGER


def test_nan_score_round_trip(tmp_path):
    adapter = Store(tmp_path).publish(
        "ner-news", lambda _: example_manifest(scores={"test": Scores({"f1": float("nan")})})
    )
    assert adapter.manifest.scores["test"].values["f1"] != adapter.manifest.scores["test"].values["f1"]
    assert '"f1": NaN' in adapter.manifest.to_json()


def test_manifest_is_frozen():
    manifest = example_manifest()
    for part, field in ((manifest, "method"), (manifest.task, "type"), (manifest.base, "model")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(part, field, "other")


def test_unknown_keys_are_preserved(tmp_path):
    values = {**full_manifest().to_dict(), "later": {"a": [1]}}
    values["base"]["later"] = 1
    manifest = Manifest.read(write(tmp_path / "peftlab.json", values))
    assert manifest.to_dict()["later"] == {"a": [1]}
    assert manifest.to_dict()["base"]["later"] == 1


# --- refused


@pytest.mark.parametrize("number", [0, 3, -1, 2.0, "2", None, True, [], 10**30])
def test_unknown_format_raises_integrity_error(tmp_path, number):
    file = write(tmp_path / "peftlab.json", {**example_manifest().to_dict(), "format": number})
    with pytest.raises(IntegrityError, match=r"peftlab\.json has format .* reads formats 1 to 2\. Update peftlab"):
        Manifest.read(file)


@pytest.mark.parametrize("values", [[], None, 1, "text", [{}]])
def test_values_must_be_json_object(tmp_path, values):
    file = tmp_path / "peftlab.json"
    file.write_text(json.dumps(values))
    with pytest.raises(IntegrityError, match=r"peftlab\.json is not what was published"):
        Manifest.read(file)
    with pytest.raises(IntegrityError, match="content: should be an object"):
        Manifest.from_dict(values)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": ' * 100_000, b"9" * 10_000])
def test_invalid_json_raises_integrity_error(tmp_path, content):
    file = tmp_path / "peftlab.json"
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"peftlab\.json is not what was published"):
        Manifest.read(file)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("task", "labels"), "PER", "task.labels: should be a valid array"),
        (("task", "labels", 0), 1, "task.labels.0: should be a valid string"),
        (("task",), None, "task: should be an object"),
        (("base", "trust_remote_code"), "false", "base.trust_remote_code: should be a valid boolean"),
        (("base", "quantization"), "2bit", "base.quantization: should be '8bit' or '4bit'"),
        (("base", "bytes", "in memory"), 1.5, "base.bytes.in memory: should be a valid integer"),
        (("max_length",), 0, "max_length: should be greater than or equal to 1"),
        (("max_length",), True, "max_length: should be a valid integer"),
        (("scores", "test", "f1"), "0.5", "scores.test.f1: should be a number"),
        (("scores", "test", "confusion", "counts"), [1], "scores.test.confusion.counts.0: should be a valid array"),
        (("data", "ledger", "train", "cut"), -1, "data.ledger.train.cut: should be greater than or equal to 0"),
        (("started_from", "head"), None, "started_from.head: should be a valid boolean"),
        (("files",), [], "files: should be a"),
    ],
)
def test_invalid_field_error_names_field(tmp_path, path, value, message):
    values = full_manifest().to_dict()
    section = values
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    file = write(tmp_path / "peftlab.json", values)
    with pytest.raises(IntegrityError) as error:
        Manifest.read(file)
    assert str(error.value).startswith(f"{file} is not a valid manifest:\n")
    assert f"\n  {message}" in str(error.value)


@pytest.mark.parametrize("key", sorted(example_manifest().to_dict().keys() - {"format", "version", "files"}))
def test_missing_field_error_names_field(key):
    values = full_manifest().to_dict()
    del values[key]
    if key == "manifest_sha256":  # `read` has compared it
        assert Manifest.from_dict(values).manifest_sha256 == ""
        return
    with pytest.raises(IntegrityError, match=f"  {key}: is missing"):
        Manifest.from_dict(values)


def test_error_list_is_truncated():
    values = example_manifest().to_dict()
    values["task"]["labels"] = list(range(1000))
    with pytest.raises(IntegrityError, match="and 990 more") as error:
        Manifest.from_dict(values)
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize("change", [{"type": "token-clasification"}, {"options": {"unknown": 1}}])
def test_unknown_task_raises_integrity_error(change):
    values = example_manifest().to_dict()
    values["task"] |= change
    with pytest.raises(IntegrityError, match=r"token-classification"):
        Manifest.from_dict(values).task.build()


# --- mutations

REPLACEMENTS = [
    None, True, -1, 0, 1.5, float("nan"), 10**400, "", "8bit", "\u2028", "x" * 10_000, [], [None], [[]], {}, {"": None},
    {"by_label": 1}, [{"a": 1}] * 3,
]  # fmt: skip


def nested_paths(values, path=()):
    """The path of each value inside `values`."""
    yield path
    entries = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in entries:
        yield from nested_paths(value, (*path, key))


def mutate(values, rng):
    """Replace, remove, add or rename one value at a random place."""
    values = copy.deepcopy(values)
    *parents, last = rng.choice([path for path in nested_paths(values) if path])
    section = values
    for key in parents:
        section = section[key]
    match rng.choice(["replace", "replace", "remove", "add", "rename"]):
        case "remove":
            del section[last]
        case "add" if isinstance(section, dict):
            section[f"{last}x"] = rng.choice(REPLACEMENTS)
        case "rename" if isinstance(section, dict):
            section[str(last).upper()] = section.pop(last)
        case _:
            section[last] = rng.choice(REPLACEMENTS)
    return values


@pytest.mark.parametrize("seed", range(20))
def test_random_mutation_raises_only_integrity_error(tmp_path, seed):
    rng = random.Random(seed)
    originals = [full_manifest().to_dict(), *(values_of(path) for path in FORMAT_1_PATHS)]
    outcomes = set()
    for number in range(30):
        values = rng.choice(originals)
        for _ in range(rng.randint(1, 3)):
            values = mutate(values, rng)
        file = write(tmp_path / f"{number}.json", values)
        try:
            manifest = Manifest.read(file)
            assert Manifest.from_dict(manifest.to_dict()).to_json() == manifest.to_json()
            manifest.task.build()
        except IntegrityError as error:
            assert "\n  " in str(error) or "format" in str(error) or "task" in str(error)  # noqa: PT017
            outcomes.add("refused")
        else:
            outcomes.add("read")
    assert outcomes == {"read", "refused"}

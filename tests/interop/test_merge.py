"""`peftlab export --to merged`: a plain Transformers model that answers as the adapter beside its base."""

import json

import pytest
import torch
import transformers
from peft import LoraModel, PeftModel

import peftlab
from peftlab.base import load_with_head
from peftlab.errors import IntegrityError
from peftlab.interop import merge
from tests.model_cards import model_of_card
from tests.task_stores import one_line, recipe_for, run

KINDS = ("entities", "classes", "topics", "rating", "answers", "relations")


@pytest.fixture(scope="module")
def store(tiny_base, tmp_path_factory):
    """An adapter of each kind with LoRA, and one with bottlenecks."""
    folder = tmp_path_factory.mktemp("exported")
    for kind in KINDS:
        peftlab.tune(recipe_for(folder / kind, tiny_base, kind), store=folder / "store")
    bottleneck = {"name": "bottleneck", "method": {"type": "bottleneck"}}
    peftlab.tune(folder / "classes" / "recipe.yaml", overrides=bottleneck, store=folder / "store")
    return folder / "store"


@pytest.mark.parametrize("kind", KINDS)
def test_merged_model_matches_plain_peft(store, tmp_path, kind):
    merged = merge(kind, tmp_path / "model", store=store)
    bank = peftlab.load(kind, store=store)
    task = bank.task(kind)
    model = load_merged(merged.folder, task)
    plain, _ = load_with_head(bank.base.files, task)
    plain = PeftModel.from_pretrained(plain, merged.adapter.folder)
    inputs = {"input_ids": torch.randint(5, 40, (4, 12)), "attention_mask": torch.ones(4, 12, dtype=torch.long)}
    inputs |= {"entity_positions": torch.tensor([[1, 5]] * 4)} if kind == "relations" else {}
    with torch.no_grad():
        one, other = (task.head.logits(m.eval()(**inputs)) for m in (model, plain))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert merged.difference <= 1e-4 * merged.largest_logit
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in merged.folder.iterdir())


def load_merged(folder, task):
    """The merged model, by an auto class of Transformers, or by the code in its README if the head pools."""
    if task.head.pooling:
        return model_of_card(folder)
    model, report = getattr(transformers, task.head.auto_class).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] | report["unexpected_keys"]
    return model


def test_merged_model_keeps_labels(store, tmp_path):
    merge("classes", tmp_path / "model", store=store)
    answer = peftlab.load("classes", store=store).predict("it rained .")[0].prediction
    pipe = transformers.pipeline("text-classification", model=str(tmp_path / "model"))
    assert pipe("it rained .")[0]["label"] == answer.label


def test_export_command_prints_folder_and_size(store, tmp_path):
    result = run("export", "topics", "--output", tmp_path / "model", "--store", store)
    assert result.exit_code == 0, result.output
    assert "topics@1 merged into its base" in one_line(result.output)
    as_json = run("export", "topics", "--output", tmp_path / "again", "--store", store, "--json")
    written = json.loads(as_json.stdout)
    assert (written["adapter"], written["folder"]) == ("topics@1", str(tmp_path / "again"))


def test_nonempty_folder_raises_store_error(store, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    result = run("export", "topics", "--output", tmp_path / "mine", "--store", store)
    assert result.exit_code == 5
    assert "already exists. Name a new folder" in one_line(result.output)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_unwritable_folder_is_refused_before_merging(store, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("export", "topics", "--output", tmp_path / "file" / "model", "--store", store)
    assert result.exit_code == 5
    assert "cannot be written" in one_line(result.output)


def test_unmergeable_method_raises_error(store, tmp_path):
    result = run("export", "bottleneck", "--output", tmp_path / "model", "--store", store)
    assert result.exit_code == 4
    assert "bottleneck@1 (bottleneck) cannot be merged into its base: a bottleneck is not linear" in one_line(
        result.output
    )
    assert list(tmp_path.iterdir()) == []


def test_merged_model_with_different_logits_is_not_exported(store, tmp_path, monkeypatch):
    def wrong(model, *args, **kwargs):
        merged = merge_and_unload(model, *args, **kwargs)
        merged.classifier.weight.data.mul_(2)
        return merged

    merge_and_unload = LoraModel.merge_and_unload
    monkeypatch.setattr(LoraModel, "merge_and_unload", wrong)
    with pytest.raises(IntegrityError, match=r"topics@1 was not exported: after merging, its logits .* differ by"):
        merge("topics", tmp_path / "model", store=store)
    assert list(tmp_path.iterdir()) == []


def test_export_does_not_change_bank(store):
    bank = peftlab.load("topics", store=store)
    before = {name: tensor.clone() for name, tensor in bank.model("topics").state_dict().items()}
    bank.full_precision_copy("topics").merge_and_unload()
    after = bank.model("topics").state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantized_base_is_dequantized_before_merging(store, tmp_path, quantization):
    recipe, changes = store.parent / "classes" / "recipe.yaml", {"name": "rounded", "base.quantization": quantization}
    peftlab.tune(recipe, overrides=changes, store=tmp_path / "store", device="cpu")
    merged = merge("rounded", tmp_path / "model", store=tmp_path / "store", device="cpu")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(merged.folder).eval()
    assert not hasattr(model.config, "quantization_config")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    files = peftlab.load("rounded", store=tmp_path / "store", device="cpu").base.files
    task = peftlab.load("rounded", store=tmp_path / "store", device="cpu").task("rounded")
    rounded, _ = load_with_head(files, task, quantization=quantization)
    plain = PeftModel.from_pretrained(rounded.dequantize(torch.float32), merged.adapter.folder).merge_and_unload()
    tokens = torch.randint(5, 40, (4, 12))
    with torch.no_grad():
        expected = plain.eval()(input_ids=tokens).logits
        torch.testing.assert_close(model(input_ids=tokens).logits, expected, rtol=0, atol=1e-6)
    assert 0 < merged.difference < 0.05 * merged.largest_logit  # 8-bit layers round what they are given as well

"""`peftlab adapters import`: what plain PEFT saved answers in a bank as with plain PEFT, or is refused in words."""

import json
import shutil

import pytest
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from peft import get_peft_model as with_peft
from safetensors.torch import load_file, save_file

import peftlab
from peftlab.errors import AdapterNotFoundError, BaseNotFoundError, IntegrityError, RecipeError
from peftlab.interop import import_adapter, merge
from peftlab.store import Store
from peftlab.tasks.labels.tag_schemes import types_of_tags
from tests.architectures import build
from tests.conftest import HUB_ID, build_tiny_bert
from tests.serving import build_feature, predict_each
from tests.task_stores import one_line, run, to_json_lines

SHUFFLED = ["I-LOC", "B-PER", "O", "I-PER", "B-LOC"]
OURS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
TEXT = {"text": "Ada Lovelace left Rome ."}
ASKED = {"question": "who left ?", "context": "Ada Lovelace left Rome ."}
# kind → task, its Transformers class, PEFT's word, outputs, options of the import, a row
KINDS = {
    "tags": ("token-classification", "AutoModelForTokenClassification", "TOKEN_CLS", 5, {"labels": SHUFFLED}, TEXT),
    "classes": (
        "text-classification", "AutoModelForSequenceClassification", "SEQ_CLS", 3, {"labels": ["b", "a", "c"]}, TEXT,
    ),
    "topics": (
        "text-classification", "AutoModelForSequenceClassification", "SEQ_CLS", 2,
        {"labels": ["b", "a"], "multi_label": True, "threshold": 0.3}, TEXT,
    ),
    "rating": ("regression", "AutoModelForSequenceClassification", "SEQ_CLS", 1, {}, TEXT),
    "answers": ("question-answering", "AutoModelForQuestionAnswering", "QUESTION_ANS", 2, {}, ASKED),
}  # fmt: skip
PLACES = {"bert": (["query", "value"], "output.dense"), "llama": (["q_proj", "v_proj"], "down_proj")}


def config_of(method, base, task_type):
    targets, inner = PLACES[base]
    if method == "ia3":
        return IA3Config(target_modules=[*targets, inner], feedforward_modules=[inner], task_type=task_type)
    more = {"use_dora": True} if method == "dora" else {}
    if method == "saved":  # the last layer as a whole, named by its end
        more = {"modules_to_save": ["layers.1" if base == "llama" else "layer.1"], "layers_to_transform": [0]}
    return LoraConfig(r=4, target_modules=targets, task_type=task_type, **more)


def save_plain(base, folder, config, auto_class, outputs, **saving):
    """What a training of `config` with plain PEFT might leave in `folder`."""
    torch.manual_seed(3)
    model = getattr(transformers, auto_class).from_pretrained(base, num_labels=outputs)
    adapted = with_peft(model, config)
    with torch.no_grad():
        for parameter in (p for p in adapted.parameters() if p.requires_grad):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(folder, **saving)
    return folder


def save_kind(base, folder, kind="classes", method="lora", architecture="bert", **changes):
    _, auto_class, task_type, outputs, _, _ = KINDS[kind]
    config = config_of(method, architecture, task_type)
    for key, value in changes.items():
        setattr(config, key, value)
    return save_plain(base, folder, config, auto_class, outputs)


def import_kind(folder, store, kind="classes", **changes):
    task, _, _, _, options, _ = KINDS[kind]
    return import_adapter(folder, kind, **{"task": task, "store": store, "device": "cpu", **options, **changes})


def plain_logits(base, folder, kind, inputs):
    """What Transformers and PEFT alone make of an input."""
    _, auto_class, _, outputs, _, _ = KINDS[kind]
    model = getattr(transformers, auto_class).from_pretrained(base, num_labels=outputs)
    with torch.inference_mode():
        output = PeftModel.from_pretrained(model, folder).eval()(**inputs)
    if kind == "answers":
        return torch.stack([output.start_logits, output.end_logits], dim=-1)[0]
    return output.logits[0]


def change_config(folder, **changes):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))


@pytest.fixture(scope="module")
def bases(tiny_base, tmp_path_factory):
    return {"bert": tiny_base, "llama": build("llama", tmp_path_factory.mktemp("llama"))}


@pytest.mark.parametrize("method", ["lora", "ia3", "dora", "saved"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", PLACES)
def test_imported_logits_match_plain_peft(bases, tmp_path, architecture, kind, method):
    base = bases[architecture]
    saved = save_kind(base, tmp_path / "saved", kind, method, architecture)
    imported = import_kind(saved, tmp_path / "store", kind)
    assert imported.difference <= 1e-5
    assert imported.largest_logit > 0
    bank = peftlab.load(kind, store=tmp_path / "store", device="cpu", precision="fp32")
    (feature,) = build_feature(bank, kind, KINDS[kind][-1])
    assert "token_type_ids" in feature.inputs or architecture == "llama"
    inputs = {name: torch.tensor([values]) for name, values in feature.inputs.items()}
    expected = plain_logits(base, saved, kind, inputs)
    if kind == "tags":
        assert bank.task(kind).head.labels == OURS
        expected = expected[..., [SHUFFLED.index(tag) for tag in OURS]]
    (logits,) = predict_each(bank, [(kind, feature)])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert bank.predict(KINDS[kind][-1])[0].adapter == kind


def test_question_answering_uses_no_token_types_like_peft(bases, tmp_path):
    saved = save_kind(bases["bert"], tmp_path / "saved", "answers")
    inputs = transformers.AutoTokenizer.from_pretrained(bases["bert"])(*ASKED.values(), return_tensors="pt")
    assert inputs["token_type_ids"].any()
    imported = import_kind(saved, tmp_path / "store", "answers")
    assert any("no token types" in note for note in imported.warnings)
    bank = peftlab.load("answers", store=tmp_path / "store", device="cpu", precision="fp32")
    (feature,) = build_feature(bank, "answers", ASKED)
    (logits,) = predict_each(bank, [("answers", feature)])
    expected = plain_logits(bases["bert"], saved, "answers", inputs)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_question_answering_without_peft_class_uses_token_types(bases, tmp_path):
    config = LoraConfig(r=4, target_modules=["query"], modules_to_save=["qa_outputs"])
    saved = save_plain(bases["bert"], tmp_path / "saved", config, "AutoModelForQuestionAnswering", 2)
    import_kind(saved, tmp_path / "store", "answers")
    bank = peftlab.load("answers", store=tmp_path / "store", device="cpu", precision="fp32")
    (feature,) = build_feature(bank, "answers", ASKED)
    assert any(feature.inputs["token_type_ids"])


def test_published_files_load_in_plain_peft_with_our_output_order(bases, tmp_path):
    saved = save_kind(bases["bert"], tmp_path / "saved", "tags", "saved")
    imported = import_kind(saved, tmp_path / "store", "tags")
    folder = imported.adapter.folder
    model = transformers.AutoModelForTokenClassification.from_pretrained(bases["bert"], num_labels=5)
    tokens = {"input_ids": torch.tensor([[2, 7, 9, 3]])}
    with torch.inference_mode():
        found = PeftModel.from_pretrained(model, folder).eval()(**tokens).logits[0]
    expected = plain_logits(bases["bert"], saved, "tags", tokens)[..., [SHUFFLED.index(tag) for tag in OURS]]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["bert.encoder.layer.1", "classifier"]
    assert config["base_model_name_or_path"] == str(bases["bert"])


def test_manifest_records_import_details(bases, tmp_path):
    saved = save_kind(bases["bert"], tmp_path / "saved", "tags")
    manifest = import_kind(saved, tmp_path / "store", "tags").adapter.manifest
    assert manifest.imported.source == str(saved)
    assert manifest.imported.peft_version == json.loads((saved / "adapter_config.json").read_text())["peft_version"]
    assert manifest.imported.head_order == (2, 4, 0, 1, 3)
    assert manifest.task.labels == ("LOC", "PER")
    assert (manifest.method, manifest.max_length, manifest.scores) == ("lora", 64, {})
    assert manifest.parameters.trained == sum(
        t.numel() for t in load_file(saved / "adapter_model.safetensors").values()
    )
    assert import_kind(saved, tmp_path / "store", "tags", max_length=32).adapter.manifest.max_length == 32
    assert Store(tmp_path / "store").versions("tags") == [1, 2]


def test_imported_adapter_works_with_predict_stack_merge_and_export(bases, store_copy, tmp_path):
    """Beside tuned adapters: mixed batches, scores, versions, exports."""
    for kind in ("tags", "classes", "rating"):
        import_kind(save_kind(bases["bert"], tmp_path / kind, kind), store_copy, kind)
    import_kind(save_kind(bases["bert"], tmp_path / "dora", "classes", "dora"), store_copy)
    names = ["ner-tiny@1", "tags", "classes", "ner-place", "rating", "classes@1"]
    bank = peftlab.load(*names, store=store_copy, device="cpu", precision="fp32")
    asked = [(name, feature) for name in names for feature in build_feature(bank, name, TEXT)]
    for (name, feature), logits in zip(asked, predict_each(bank, asked), strict=True):
        (alone,) = predict_each(bank, [(name, feature)])
        torch.testing.assert_close(logits, alone, rtol=0, atol=1e-5)
    rows = [{"tokens": ["Ada", "left", "Rome"], "tags": ["B-PER", "O", "B-LOC"]}]
    (tmp_path / "rows.jsonl").write_text(to_json_lines(rows))
    scored = peftlab.evaluate("tags", tmp_path / "rows.jsonl", store=store_copy, device="cpu")
    assert 0 <= scored.scores.values["f1"] <= 1
    assert merge("classes@1", tmp_path / "merged", store=store_copy).difference < 1e-4
    assert (
        "classes now refers to classes@1, imported, not scored"
        in run("adapters", "rollback", "classes", "--store", store_copy).output
    )
    listed = run("adapters", "list", "--store", store_copy).output
    assert listed.count("imported, not sc") == 3  # a narrow table may cut it
    shown = one_line(run("adapters", "show", "tags", "--store", store_copy).output)
    assert f"Imported from {tmp_path / 'tags'}, saved by PEFT" in shown
    assert "data not known" in shown
    assert run("adapters", "verify", "tags", "--store", store_copy).exit_code == 0


def test_import_command_prints_summary(bases, tmp_path):
    saved, store = save_kind(bases["bert"], tmp_path / "saved", "tags"), tmp_path / "store"
    command = ["adapters", "import", saved, "--name", "mine", "--task", "token-classification", "--store", store]
    result = run(*command, "--labels", ", ".join(SHUFFLED))
    assert result.exit_code == 0, result.output
    for words in ("Published mine@1", "LOC, PER, by lora, not scored", "does not say which weights", "plain PEFT's",
                  f'peftlab predict mine --store {store} "Your text"'):  # fmt: skip
        assert words in result.output
    as_json = json.loads(run(*command, "--labels", ",".join(SHUFFLED), "--json").stdout)
    assert (as_json["adapter"], as_json["source"]) == ("mine@2", str(saved))
    card = (store / "mine" / "1" / "README.md").read_text()
    assert "it was not scored" in card
    assert str(saved) in card


def refused(folder, tmp_path, kind="classes", **changes):
    """What the refusal of an import says; nothing is published."""
    with pytest.raises((IntegrityError, RecipeError, AdapterNotFoundError, BaseNotFoundError)) as error:
        import_kind(folder, tmp_path / "store", kind, **changes)
    assert Store(tmp_path / "store").names() == []
    assert not [file for file in (tmp_path / "store").glob("*/*") if not file.name.endswith(".lock")]
    return one_line(str(error.value))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("classes", {"labels": ["a", "b"]}, "labels: the head has 3 outputs (classifier), and 2 labels are named: a"),
        ("classes", {"labels": None}, "labels: the labels of the head are missing. Name each one in the head's order"),
        ("classes", {"labels": ["a"]}, "one label is not enough"),
        ("classes", {"labels": ["a", "b", "a"]}, "labels: 'a' is given twice"),
        ("classes", {"labels": ["a", "", "c"]}, "labels: label 2 is empty"),
        ("classes", {"task": "regression", "labels": None}, "task: the head has 3 outputs (classifier), and reg"),
        ("rating", {"labels": ["a"]}, "labels: regression has none. Remove them."),
        ("rating", {"multi_label": True, "threshold": 2.0}, "2 problems multi_label: regression has no multi-label"),
        ("classes", {"threshold": 0.4}, "threshold: a threshold needs --multi-label"),
        ("topics", {"threshold": 1.5}, "threshold: should be between 0 and 1, not 1.5"),
        (
            "tags",
            {"labels": ["O", "B-PER", "S-PER", "B-LOC", "B-LOC"]},
            "'S-PER' is none of them; 'B-LOC' is there twice; 'I-PER' is missing; 'I-LOC' is missing",
        ),
        ("tags", {"labels": ["B-PER", "I-PER"]}, "'O' is missing"),
        ("tags", {"labels": ["O", "B-PER", "I-PER"]}, "the head has 5 outputs (classifier), and 3 labels are named"),
        ("classes", {"task": "relation-extraction"}, "relation-extraction cannot be imported: peftlab marks"),
        ("classes", {"task": "text-clasification"}, "unknown task 'text-clasification'. Did you mean 'text-c"),
        (
            "classes",
            {"task": "token-classification"},
            "PEFT trained it as SEQ_CLS, which is not token-classification. Use text-classification or regression.",
        ),
        ("classes", {"max_length": 65}, "max_length: should be 8 to 64 tokens, which this base takes, not 65"),
        ("classes", {"base": "nobody/nothing"}, "base model 'nobody/nothing' is in none of these places"),
        ("classes", {"revision": "main"}, "a folder has no revision"),
    ],
)  # fmt: skip
def test_wrong_arguments_raise_recipe_error(bases, tmp_path, kind, changes, message):
    saved = save_kind(bases["bert"], tmp_path / "saved", kind)
    assert message in refused(saved, tmp_path, kind, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LORRA"}, "peft_type is 'LORRA', which peftlab does not serve. Did you mean 'LORA'?"),
        ({"peft_type": ["LORA"]}, "peft_type is ['LORA'], which peftlab does not serve"),
        ({"peft_type": "XLORA"}, "peft_type is 'XLORA', which peftlab does not serve"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa': it was trained on a base whose"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices: it changes the embeddings of single tokens"),
        ({"layer_replication": [[0, 2]]}, "layer_replication: it repeats layers of the base"),
        ({"modules_to_save": "classifier"}, "modules_to_save should be a list of names"),
        ({"task_type": "CAUSAL_LM"}, "PEFT trained it as CAUSAL_LM, which is not text-classification. Such an adapter"),
        ({"r": "eight"}, "does not fit its base: "),
        ({"r": 3}, "(4, 32) where the model has (3, 32)"),
        ({"base_model_name_or_path": None}, "does not name the base that it was trained on. Name it: --base MODEL"),
        ({"base_model_name_or_path": "a/b"}, "names it as its base; name another place with --base"),
    ],
)  # fmt: skip
def test_unsupported_configuration_raises_error(bases, tmp_path, changes, message):
    saved = save_kind(bases["bert"], tmp_path / "saved")
    change_config(saved, **changes)
    assert message in refused(saved, tmp_path)


@pytest.mark.parametrize("config", [PrefixTuningConfig, PromptTuningConfig, PromptEncoderConfig])
def test_peft_prompt_methods_raise_error(bases, tmp_path, config):
    made = config(task_type="SEQ_CLS", num_virtual_tokens=4)
    saved = save_plain(bases["bert"], tmp_path / "saved", made, "AutoModelForSequenceClassification", 3)
    message = refused(saved, tmp_path)
    assert "PEFT adds virtual tokens in its own forward" in message
    assert "Tune a new adapter with method prompt, p-tuning or prefix" in message


def test_all_reasons_are_listed_together(bases, tmp_path):
    saved = save_kind(bases["bert"], tmp_path / "saved")
    change_config(saved, init_lora_weights="olora", arrow_config={}, alora_invocation_tokens=[1])
    message = refused(saved, tmp_path)
    assert "olora" in message
    assert "alora_invocation_tokens" in message
    assert "arrow_config" not in message  # it is empty


def change_tensors(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def test_mismatched_tensors_are_listed(bases, tmp_path):
    saved = save_kind(bases["bert"], tmp_path / "saved")
    gone = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"

    def change(tensors):
        tensors["base_model.model.bert.encoder.layer.7.attention.self.query.lora_A.weight"] = tensors.pop(gone)
        del tensors["base_model.model.classifier.bias"]

    change_tensors(saved, change)
    message = refused(saved, tmp_path)
    assert "layer.7.attention.self.query.lora_A.weight: not in this model" in message
    assert "layer.0.attention.self.query.lora_A.weight: missing" in message
    assert "classifier.bias: missing" in message
    assert "PEFT saves the modules in modules_to_save" in message


def test_wrong_base_raises_error(bases, tmp_path):
    saved = save_kind(bases["bert"], tmp_path / "saved")
    shallow = build_tiny_bert(tmp_path / "shallow", layers=1)
    assert "layer.1.attention.self.query.lora_A.weight: not in this model" in refused(
        saved, tmp_path, base=str(shallow)
    )


def test_missing_tensors_raise_error(tmp_path):
    base = build("bert-without-pooler", tmp_path / "base")
    saved = save_kind(base, tmp_path / "saved")
    message = refused(saved, tmp_path)
    assert "has bert.pooler.dense.bias, bert.pooler.dense.weight, which were newly initialized" in message
    whole = save_kind(base, tmp_path / "whole", modules_to_save=["pooler"])
    assert import_kind(whole, tmp_path / "store").difference <= 1e-5


def test_pretrained_head_tensors_are_saved_with_adapter(tmp_path):
    """PEFT saves ModernBERT's classifier alone; the rest of its head is in checkpoints of its masked language model."""
    build("modernbert", tmp_path / "base")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "base")
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "base")
    lora = LoraConfig(r=4, target_modules=["Wqkv"], task_type="SEQ_CLS")
    saved = save_plain(tmp_path / "base", tmp_path / "saved", lora, "AutoModelForSequenceClassification", 3)
    assert not [name for name in load_file(saved / "adapter_model.safetensors") if ".head." in name]
    imported = import_kind(saved, tmp_path / "store")
    assert imported.difference <= 1e-5
    assert imported.adapter.manifest.head_modules == ("head.dense", "head.norm", "classifier")
    assert peftlab.load("classes", store=tmp_path / "store", device="cpu").predict("Ada left .")


def test_adapter_with_different_logits_is_not_published(bases, tmp_path, monkeypatch):
    saved = save_kind(bases["bert"], tmp_path / "saved", "tags")

    def unchanged(tensors, outputs, order):
        return dict(tensors)

    monkeypatch.setattr("peftlab.interop.import_writer.reorder_outputs", unchanged)
    assert "was not imported: its logits" in refused(saved, tmp_path, "tags")


def test_pickle_is_not_loaded(bases, tmp_path):
    saved = save_kind(bases["bert"], tmp_path / "saved")
    (saved / "adapter_model.safetensors").rename(saved / "adapter_model.bin")
    message = refused(saved, tmp_path)
    assert "there is no adapter_model.safetensors" in message
    assert "There is an adapter_model.bin: that is a pickle, which peftlab does not open" in message
    assert "`model.save_pretrained(folder)`, which writes safetensors" in message


def test_invalid_files_raise_error(bases, tmp_path):
    saved = save_kind(bases["bert"], tmp_path / "runs" / "checkpoint-7")
    message = refused(tmp_path / "runs", tmp_path)
    assert "There are adapters inside: checkpoint-7" in message
    (saved / "adapter_model.safetensors").write_bytes(b"0" * 40)
    assert "is not a complete safetensors file" in refused(saved, tmp_path)
    (saved / "adapter_config.json").write_text("[1]")
    assert "should hold a JSON object" in refused(saved, tmp_path)
    (saved / "adapter_config.json").write_text("{")
    assert "is not JSON" in refused(saved, tmp_path)


def test_published_adapter_is_not_imported(tuned_store, tmp_path):
    message = refused(tuned_store / "ner-tiny" / "1", tmp_path, "tags")
    assert "was published by peftlab" in message
    assert "--store" in message


def test_invalid_name_is_refused_before_search(tmp_path):
    with pytest.raises(AdapterNotFoundError, match=r"'\.\./up' cannot be an adapter's name"):
        import_adapter(tmp_path / "nowhere", "../up", task="regression", store=tmp_path / "store")


def test_missing_adapter_lists_searched_places(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refused("nobody/nothing", tmp_path)
    assert "local folder nobody/nothing: it does not exist" in message
    assert "Hub cache" in message
    assert "skipped, because HF_HUB_OFFLINE is set" in message


def test_import_from_hub_cache(bases, tmp_path, hub_cache):
    commit = "89abcdef0123456789abcdef0123456789abcdef"
    home = tmp_path / "hub" / "models--someone--classes"
    saved = save_kind(bases["bert"], home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    change_config(saved, base_model_name_or_path=HUB_ID, revision="main")
    imported = import_kind("someone/classes", tmp_path / "store")
    manifest = imported.adapter.manifest
    assert (manifest.imported.source, manifest.imported.commit) == ("someone/classes", commit)
    assert (manifest.base.model, manifest.base.revision) == (HUB_ID, hub_cache.name)
    (saved / "adapter_model.safetensors").unlink()
    assert "incomplete, some files are missing" in refused("someone/classes", tmp_path / "other")


def test_hub_download_requests_two_files(bases, tmp_path, monkeypatch):
    saved = save_kind(bases["bert"], tmp_path / "0123abc")
    asked = []

    def download(name, *, revision, allow_patterns, local_files_only):
        asked.append((name, revision, allow_patterns, local_files_only))
        if local_files_only:
            raise LocalEntryNotFoundError("not there")
        return str(saved)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    imported = import_kind("someone/classes", tmp_path / "store", revision="v2")
    files = ["adapter_config.json", "adapter_model.safetensors"]
    assert asked[:2] == [("someone/classes", "v2", files, cached) for cached in (True, False)]
    assert imported.adapter.manifest.imported.place == "Hub"
    (saved / "adapter_model.safetensors").unlink()
    assert "If it has an adapter_model.bin: that is a pickle" in refused("someone/classes", tmp_path / "other")


def test_other_base_revision_adds_warning(bases, tmp_path, hub_cache):
    saved = save_kind(bases["bert"], tmp_path / "saved")
    change_config(saved, base_model_name_or_path=HUB_ID, revision="v2")
    imported = import_kind(saved, tmp_path / "store")
    assert f"it names revision 'v2' of its base, but {hub_cache.name} was found." in imported.warnings


def test_unknown_configuration_keys_are_removed_with_warning(bases, tmp_path):
    saved = save_kind(bases["bert"], tmp_path / "saved")
    change_config(saved, of_the_future=1)
    imported = import_kind(saved, tmp_path / "store")
    assert any("does not know these keys of its configuration: of_the_future" in note for note in imported.warnings)
    assert "of_the_future" not in (imported.adapter.folder / "adapter_config.json").read_text()


def test_half_precision_tensors_are_served_in_float32(bases, tmp_path):
    saved = save_kind(bases["bert"], tmp_path / "saved")
    change_tensors(saved, lambda tensors: tensors.update({name: t.half() for name, t in tensors.items()}))
    imported = import_kind(saved, tmp_path / "store")
    tensors = load_file(imported.adapter.folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert imported.difference <= 1e-5


def test_base_can_be_moved(bases, tmp_path):
    saved = save_kind(bases["bert"], tmp_path / "saved")
    change_config(saved, base_model_name_or_path="/home/someone/bert")
    moved = shutil.copytree(bases["bert"], tmp_path / "moved")
    imported = import_kind(saved, tmp_path / "store", base=str(moved))
    assert "it names another base, '/home/someone/bert'." in imported.warnings
    assert imported.adapter.manifest.base.model == str(moved)


def test_unreadable_base_raises_error(bases, tmp_path):
    saved = save_kind(bases["bert"], tmp_path / "saved")
    strange = shutil.copytree(bases["bert"], tmp_path / "strange")
    (strange / "config.json").write_text('{"model_type": "nothing"}')
    assert "strange' cannot be loaded: " in refused(saved, tmp_path, base=str(strange))


def test_types_of_tags():
    assert types_of_tags(SHUFFLED) == ["LOC", "PER"]
    assert types_of_tags(["O", "I-a-b", "B-a-b"]) == ["a-b"]
    with pytest.raises(ValueError, match="there is no type at all"):
        types_of_tags(["O"])

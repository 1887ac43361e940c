"""The task domain-adaptation: masks, objectives, scores and fillings, against plain Transformers and PEFT."""

import json
import math
from collections import Counter

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForTokenClassification, AutoTokenizer

import peftlab
from peftlab.base import load_with_head
from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.errors import IntegrityError, RecipeError, TuningInterrupted
from peftlab.interop import merge
from peftlab.store import WEIGHTS_FILE
from peftlab.tasks.causal_lm import CausalLmTask
from peftlab.tasks.domain_adaptation import DomainMaskedLmTask
from peftlab.tasks.inputs.features import IGNORED
from peftlab.tasks.inputs.masking import TokenMasker
from peftlab.tasks.inputs.text import TextInputs
from tests.architectures import build
from tests.conftest import recipe_in
from tests.language_models import build_language_model, save_byte_tokenizer
from tests.masked_models import KINDS, TEXTS, build_masked_model, text_recipe, transformers_mask_predictions
from tests.recipe.test_task_sections import Stopping
from tests.runs import Losses, prepared_run
from tests.task_stores import one_line, run
from tests.untrained import publish_untrained

METHODS = {
    "lora": {"type": "lora", "r": 4},
    "pfeiffer": {"type": "bottleneck"},
    "prefix": {"type": "prefix", "num_virtual_tokens": 3},
    "prompt": {"type": "prompt", "num_virtual_tokens": 3},
    "bitfit": {"type": "bitfit"},
    "last-layers": {"type": "last-layers"},
    "full": {"type": "full"},
}
ASKED = "Ada {mask} wrote to {mask} ."


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_masked_model(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def store(base, tmp_path_factory):
    """Untrained, stirred adapters of several methods on one tiny BERT, and a tagger."""
    folder = tmp_path_factory.mktemp("domains")
    for name, method in METHODS.items():
        publish_untrained(folder / "store", text_recipe(folder / "rows", base), {"name": name, "method": method})
    (folder / "tags").mkdir()
    publish_untrained(folder / "store", recipe_in(folder / "tags", base), {})
    return folder / "store"


def plain_model(base, adapter):
    """The base's own class with an adapter, by plain PEFT."""
    model = AutoModelForMaskedLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter.folder).eval()


def token_scores(mask):
    return [(one.token, pytest.approx(one.score, abs=1e-6)) for one in mask]


def encode_text(task, tokenizer, text, length=64, *, training=False):
    return task.encode([task.read(Row({"text": text}, "f:1"))], TextInputs(tokenizer), length, training=training)[0]


def original_tokens(feature):
    """The tokens of a feature without its masks."""
    shown = feature.inputs["input_ids"]
    return [token if label == IGNORED else label for token, label in zip(shown, feature.labels, strict=True)]


# --- against plain Transformers and PEFT


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_and_loss_match_transformers(kind, tmp_path):
    base = build_masked_model(tmp_path / "base", kind)
    adapter = publish_untrained(tmp_path / "store", text_recipe(tmp_path / "rows", base), {})
    bank = peftlab.load("letters", store=tmp_path / "store", device="cpu")
    model, tokenizer = plain_model(base, adapter), AutoTokenizer.from_pretrained(base)
    text = ASKED.format(mask=tokenizer.mask_token)
    fillings = bank.predict(text)[0].prediction
    assert [token_scores(mask) for mask in fillings.masks] == transformers_mask_predictions(
        model.get_base_model(), tokenizer
    )(text)

    task, nll, tokens = bank.task("letters"), 0.0, 0
    for line in TEXTS["test"]:
        for feature in encode_text(task, tokenizer, line):
            batch = task.head.collate([feature], TextInputs(tokenizer))
            with torch.inference_mode():
                nll += float(model(**batch).loss) * task.head.loss_terms(feature)
            tokens += task.head.loss_terms(feature)
    scores = peftlab.evaluate("letters", tmp_path / "rows" / "test.txt", store=tmp_path / "store", device="cpu").scores
    assert scores.values["loss"] == pytest.approx(nll / tokens, abs=1e-5)
    assert scores.values["perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-4)


def test_mixed_batch_matches_peft(store, base):
    bank = peftlab.load(*METHODS, "ner-tiny", store=store, device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = [ASKED.format(mask="[MASK]"), "[MASK] ."]
    asked = [(name, text) for text in texts for name in METHODS] + [("ner-tiny", "Ada left Rome .")]
    answers = bank.predict([text for _, text in asked], adapters=[name for name, _ in asked])
    assert answers[-1] == bank.predict("Ada left Rome .", adapters="ner-tiny")[0]
    for name, answer in zip(METHODS, answers, strict=False):
        model = plain_model(base, bank.adapter(name))
        inputs = tokenizer(texts[0], return_tensors="pt")
        with torch.inference_mode():
            probabilities = model(**inputs).logits[0].softmax(-1)
        expected = probabilities[inputs["input_ids"][0] == tokenizer.mask_token_id].topk(5)
        found = [[one.score for one in mask] for mask in answer.prediction.masks]
        assert torch.allclose(torch.tensor(found), expected.values, atol=1e-6), name
        words = [[tokenizer.decode([token]) for token in mask] for mask in expected.indices.tolist()]
        assert [[one.token for one in mask] for mask in answer.prediction.masks] == words


def test_long_text_uses_window_with_most_context(store, base):
    bank, tokenizer = peftlab.load("lora", store=store, device="cpu"), AutoTokenizer.from_pretrained(base)
    task = bank.task("lora")
    words = " ".join(TEXTS["train"]).split() * 2
    for place in (3, 50, 90, len(words) - 2):
        words[place] = "[MASK]"
    example = task.read_input(Row({"text": " ".join(words)}, ""))
    features = task.encode([example], TextInputs(tokenizer), 64, training=False)[0]
    decided = [number for feature in features for _, number in feature.positions]
    assert sorted(decided) == [0, 1, 2, 3]
    for feature in features:
        for token, number in feature.positions:
            assert feature.inputs["input_ids"][token] == tokenizer.mask_token_id
            assert number in (0, 3) or 15 <= token <= 48  # windows of 62 words overlap by half
    masks = bank.predict(example.text)[0].prediction.masks
    assert len(masks) == 4
    model = plain_model(base, bank.adapter("lora"))
    for feature in features:
        with torch.inference_mode():
            probabilities = model(**task.head.collate([feature], TextInputs(tokenizer))).logits[0].softmax(-1)
        for token, number in feature.positions:
            expected = probabilities[token].topk(5)
            words = [tokenizer.decode([word]) for word in expected.indices.tolist()]
            assert token_scores(masks[number]) == list(zip(words, expected.values.tolist(), strict=True))


def test_legacy_head_weight_names_are_loaded(tmp_path):
    """Google's BERT, as it lies on the Hub, calls weights of norms gamma and beta."""
    base = build_masked_model(tmp_path / "base")
    weights = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(base / "model.safetensors").items()
    }
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    adapter = publish_untrained(tmp_path / "store", text_recipe(tmp_path / "rows", base), {})
    bank, tokenizer = (
        peftlab.load("letters", store=tmp_path / "store", device="cpu"),
        AutoTokenizer.from_pretrained(base),
    )
    text = ASKED.format(mask="[MASK]")
    expected = transformers_mask_predictions(plain_model(base, adapter).get_base_model(), tokenizer)(text)
    assert [token_scores(mask) for mask in bank.predict(text)[0].prediction.masks] == expected


def test_classifier_includes_pretrained_head(tmp_path):
    """ModernBERT's, whose own `head` stands below a tagger's classifier as well."""
    base = build_masked_model(tmp_path / "base", "modernbert")
    (tmp_path / "tags").mkdir()
    adapter = publish_untrained(tmp_path / "store", recipe_in(tmp_path / "tags", base), {})
    assert adapter.manifest.head_modules == ("classifier", "head")
    bank = peftlab.load("ner-tiny", store=tmp_path / "store", device="cpu")
    plain = AutoModelForTokenClassification.from_pretrained(base, num_labels=5)
    plain = PeftModel.from_pretrained(plain, adapter.folder).eval()
    inputs = AutoTokenizer.from_pretrained(base)("Ada left Rome", return_tensors="pt")
    with torch.inference_mode():
        assert torch.equal(plain(**inputs).logits, bank.model("ner-tiny")(**inputs).logits)


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantized_base_excludes_head(tmp_path, quantization):
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    base = build_masked_model(tmp_path / "base", **sizes)
    recipe = text_recipe(tmp_path / "rows", base, base={"quantization": quantization})
    result = peftlab.tune(recipe, store=tmp_path / "store", device="cpu")
    bank = peftlab.load("letters", store=tmp_path / "store", device="cpu")
    plain, _ = load_with_head(bank.base.files, bank.task("letters"), quantization=quantization)
    assert type(plain.cls.predictions.transform.dense) is torch.nn.Linear
    assert type(plain.bert.encoder.layer[0].output.dense) is not torch.nn.Linear
    card = (result.adapter.folder / "README.md").read_text()
    assert 'llm_int8_skip_modules=["cls.predictions.transform.dense", "cls.predictions.decoder"]' in card
    scored = peftlab.evaluate("letters", tmp_path / "rows" / "test.txt", store=tmp_path / "store", device="cpu")
    assert scored.scores.values["loss"] == pytest.approx(result.scores["test"].values["loss"], rel=1e-3)


# --- masks


def test_mask_ratios_match_bert(base):
    tokenizer, fates = AutoTokenizer.from_pretrained(base), Counter()
    task = DomainMaskedLmTask(mask_probability=0.3)
    masks = TokenMasker(tokenizer, 0.3)
    tokens = tokenizer(" ".join(TEXTS["train"]))["input_ids"]
    for number in range(200):
        feature = masks.masked({"input_ids": tokens, "attention_mask": [1] * len(tokens)}, str(number))
        assert original_tokens(feature) == tokens
        assert task.head.loss_terms(feature) == round(0.3 * (len(tokens) - 2))
        for shown, label, token in zip(feature.inputs["input_ids"], feature.labels, tokens, strict=True):
            assert token not in tokenizer.all_special_ids or (shown, label) == (token, IGNORED)
            if label != IGNORED:
                fates["mask" if shown == tokenizer.mask_token_id else "stays" if shown == label else "other"] += 1
                assert shown == tokenizer.mask_token_id or shown not in tokenizer.all_special_ids
    for fate, share in (("mask", 0.8), ("stays", 0.1), ("other", 0.1)):
        assert fates[fate] / sum(fates.values()) == pytest.approx(share, abs=0.02)


def test_masks_are_deterministic_for_seed(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    task = DomainMaskedLmTask()
    (feature,) = encode_text(task, tokenizer, " ".join(TEXTS["train"][:3]), training=True)
    again = task.dynamic_masking(TextInputs(tokenizer))
    assert again(feature, "1 0 3") == again(again(feature, "2 5 7"), "1 0 3") != again(feature, "1 1 3")
    assert original_tokens(again(feature, "1 1 3")) == original_tokens(feature)
    assert task.head.loss_terms(again(feature, "1 1 3")) == task.head.loss_terms(feature)


def test_chunks_include_all_tokens_of_text(base):
    tokenizer, task = AutoTokenizer.from_pretrained(base), DomainMaskedLmTask()
    text = " ".join(TEXTS["train"])
    pieces = encode_text(task, tokenizer, text, 16, training=True)
    assert len(pieces) > 3
    assert not any(piece.truncated for piece in pieces)
    assert [token for piece in pieces for token in original_tokens(piece)[1:-1]] == tokenizer(text)["input_ids"][1:-1]
    assert [task.head.loss_terms(piece) for piece in encode_text(task, tokenizer, "Rome", training=True)] == [1]
    assert encode_text(task, tokenizer, "[MASK] [SEP]", training=True) == []


def test_text_with_no_mask_candidates_is_dropped(base, tmp_path):
    recipe = text_recipe(tmp_path / "rows", base)
    with (tmp_path / "rows" / "train.txt").open("a") as file:
        file.write("\n[MASK]\n")
    ledger = prepared_run(recipe).dataset.ledgers["train"]
    assert ledger.dropped == {"nothing in it that can be masked": 1}


def test_evaluation_masks_are_deterministic(base, tmp_path):
    rows = tmp_path / "rows"
    told = []
    for number, changes in enumerate(
        [{}, {"task.mask_probability": 0.5}, {"training.seed": 7}, {"data.test": str(rows / "more.txt")}]
    ):
        recipe = text_recipe(rows, base)
        (rows / "more.txt").write_text("\n".join(reversed(TEXTS["test"])))
        run_ = prepared_run(recipe, changes)
        features = [feature for windows in run_.dataset.features["test"] for feature in windows]
        told.append(sorted((feature.inputs["input_ids"], feature.labels) for feature in features))
        masked = sum(map(run_.task.head.loss_terms, run_.train_features))
        assert (number == 1) == (masked > 30), masked
    assert told[0] == told[1] == told[2] == told[3]


def test_training_loss_matches_transformers(base, tmp_path):
    run_ = prepared_run(text_recipe(tmp_path / "rows", base))
    again = run_.task.dynamic_masking(run_.base.inputs)
    drawn = [again(feature, f"42 0 {i}") for i, feature in enumerate(run_.train_features)]
    batch = run_.task.head.collate(drawn, run_.base.inputs)
    labels = batch.pop("labels")
    run_.model.eval()
    with torch.inference_mode():
        mine = run_.task.head.loss(run_.model(**batch).logits, labels)
        assert torch.allclose(mine, run_.model(**batch, labels=labels).loss)


def weights(result):
    return load_file(result.adapter.folder / WEIGHTS_FILE)


def equal_weights(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("strategy", ["tokens", "random"])
def test_resume_matches_full_run(base, tmp_path, strategy):
    """In the middle of an epoch, whose masks the rest of it has to have."""
    training = {"train_sampling_strategy": strategy, "num_train_epochs": 3, "early_stopping_patience": None}
    recipe = text_recipe(tmp_path / "rows", base, training=training)
    straight = peftlab.tune(recipe, store=tmp_path / "straight", device="cpu")
    with pytest.raises(TuningInterrupted, match="after step 5 of 9"):
        peftlab.tune(recipe, store=tmp_path / "store", device="cpu", progress=Stopping(at=5))
    resumed = peftlab.tune(recipe, store=tmp_path / "store", device="cpu", resume=True)
    assert equal_weights(weights(straight), weights(resumed))
    assert resumed.scores == straight.scores


@pytest.mark.parametrize("strategy", ["tokens", "random"])
def test_masks_change_per_epoch_not_per_batch(base, tmp_path, monkeypatch, strategy):
    seen = []
    draw = TokenMasker.resample
    monkeypatch.setattr(TokenMasker, "resample", lambda *how: seen.append(how[-1]) or draw(*how))
    training = {"train_sampling_strategy": strategy, "num_train_epochs": 2}
    peftlab.tune(text_recipe(tmp_path / "rows", base, training=training), store=tmp_path / "store", device="cpu")
    rows = range(len(TEXTS["train"]))
    assert sorted(seen) == sorted(f"42 {epoch} {row}" for epoch in range(2) for row in rows)


def test_no_frozen_layer_cache_with_dynamic_masking(base, tmp_path):
    class InfoMessages(Losses):
        def info(self, message):
            self.warnings.append(message)

    warnings = InfoMessages()
    recipe = text_recipe(tmp_path / "rows", base, method={"layers_to_transform": 1}, training={"num_train_epochs": 1})
    peftlab.tune(recipe, store=tmp_path / "store", device="cpu", progress=warnings)
    assert any("again in every epoch: rows are masked again in every epoch" in told for told in warnings.warnings)


# --- the objective


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    return build_language_model(tmp_path_factory.mktemp("llama"))


def test_objective_is_inferred_from_base(base, writer, tmp_path):
    for model, objective, auto_class in (
        (base, "masked-lm", "AutoModelForMaskedLM"),
        (writer, "causal-lm", "AutoModelForCausalLM"),
    ):
        run_ = prepared_run(text_recipe(tmp_path / "rows", model))
        assert (run_.recipe.task.objective, run_.task.head.auto_class) == (objective, auto_class)
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "architectures": None}))
        try:
            assert prepared_run(text_recipe(tmp_path / "rows", model)).task.head.auto_class == auto_class
        finally:
            (model / "config.json").write_text(json.dumps(config))


def test_causal_objective_matches_causal_lm_task(writer, tmp_path):
    packed = {"training": {"packing": True, "num_train_epochs": 2, "learning_rate": 1e-2}}
    recipe = text_recipe(tmp_path / "rows", writer, **packed)
    domain = peftlab.tune(recipe, store=tmp_path / "store", device="cpu")
    other = {"name": "plain", "task": {"type": "causal-lm"}}
    plain = peftlab.tune(recipe, overrides=other, store=tmp_path / "store", device="cpu")
    assert equal_weights(weights(domain), weights(plain))
    assert domain.scores["test"].values == plain.scores["test"].values
    bank = peftlab.load("letters", "plain", store=tmp_path / "store", device="cpu")
    replies = [
        bank.predict({"text": "Ada"}, adapters="letters")[0].prediction.reply,
        bank.predict({"prompt": "Ada"}, adapters="plain")[0].prediction.reply,
    ]
    assert replies[0] == replies[1] != ""
    tokenizer = AutoTokenizer.from_pretrained(writer)
    model = AutoModelForCausalLM.from_pretrained(writer, dtype=torch.float32)
    inputs = tokenizer("Ada", return_tensors="pt")
    model = PeftModel.from_pretrained(model, domain.adapter.folder).eval()
    written = model.generate(**inputs, max_new_tokens=128, do_sample=False, pad_token_id=1)[0]
    expected = tokenizer.decode(written[inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert bank.predict("Ada", adapters="letters")[0].prediction.reply == expected
    with pytest.raises(
        ValueError, match="letters@1 is for domain-adaptation; a chat needs an adapter of causal-lm or preference"
    ):
        list(bank.reply([{"role": "user", "content": "Ada"}], adapter="letters"))


def test_default_max_new_tokens_is_half_max_length(writer, tmp_path):
    recipe = text_recipe(tmp_path / "rows", writer, data={"max_length": 32})
    assert prepared_run(recipe).task.options["generation"]["max_new_tokens"] == 16
    with pytest.raises(RecipeError, match="a reply of 30 tokens leaves 2 of 32"):
        prepared_run(recipe, {"task.generation.max_new_tokens": 30})


def encoder_with_decoder(folder):
    from transformers import BartConfig, BartForConditionalGeneration

    save_byte_tokenizer(folder)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    BartForConditionalGeneration(BartConfig(vocab_size=400, **sizes)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (
            "headless",
            {},
            r"base.model: '.*' has no head for domain-adaptation: its checkpoint lacks cls.predictions.bias",
        ),
        ("headless", {}, "saved from AutoModelForMaskedLM, usually the model that this one was made from"),
        ("masked", {"task.objective": "causal-lm"}, r"\(bert\) also attends to later tokens"),
        ("written", {"task.objective": "masked-lm"}, r"\(llama\) has an architecture without a head for masked-lm"),
        ("encoder-decoder", {}, r"\(bart\) is an encoder-decoder"),
        ("masked", {"task.generation": {"num_beams": 2}}, "was pretrained for masked-lm, which does not use it"),
        ("written", {"task.mask_probability": 0.3}, "task.mask_probability: .*was pretrained for causal-lm, which"),
        ("masked", {"task.objective": "causal-lm", "task.mask_probability": 0.3}, "come with objective: masked-lm"),
        ("masked", {"task.objective": "masked-lm", "task.generation": {}}, "should come with objective: causal-lm"),
        ("masked", {"task.mask_probability": 1.0}, "task.mask_probability: should be less than 1"),
        ("masked", {"training.packing": True}, "masked tokens are predicted from the full row"),
        ("masked", {"method": {"type": "head"}}, "'head' trains only a new head"),
        ("masked", {"method": {"type": "lora", "target_modules": ["decoder"]}}, "'decoder' matches no Linear layer"),
        ("unmasked", {}, "task.objective: the tokenizer of this base has no mask token"),
    ],
)  # fmt: skip
def test_invalid_options_raise_recipe_error(base, writer, tmp_path, model, changes, message):
    folder = {"masked": base, "written": writer}.get(model, tmp_path / "base")
    if model == "headless":
        build("bert", folder)
    elif model == "encoder-decoder":
        encoder_with_decoder(folder)
    elif model == "unmasked":
        build_masked_model(folder, vocab_size=400)
        save_byte_tokenizer(folder)
    with pytest.raises(RecipeError, match=message):
        peftlab.tune(text_recipe(tmp_path / "rows", folder), overrides=changes, store=tmp_path / "store", device="cpu")
    assert not (tmp_path / "store").exists()


def test_row_requires_text_and_input_requires_mask():
    task = DomainMaskedLmTask()
    with pytest.raises(RowError, match=r"expected column text; found tekst\. Is 'tekst' the text"):
        task.read(Row({"tekst": "Ada"}, "f:1"))
    with pytest.raises(RowError, match="expected text to hold some text"):
        task.read(Row({"text": " "}, "f:1"))
    with pytest.raises(RowError, match=r"expected text to contain \[MASK\] for each word to predict, found 'Ada'"):
        task.read_input(Row({"text": "Ada"}, "f:1"))


def test_plain_text_file_is_valid_for_causal_lm(writer, tmp_path):
    recipe = text_recipe(tmp_path / "rows", writer, task={"type": "causal-lm"})
    (tmp_path / "rows" / "train.txt").write_text("Ada [wrote] to x-\n\nRome O\n")
    run_ = prepared_run(recipe)
    assert isinstance(run_.task, CausalLmTask)
    assert [example.completion for example in run_.dataset.examples["train"]] == ["Ada [wrote] to x-", "Rome O"]


# --- in the bank and from the command line


def test_only_average_composition_is_supported(store):
    bank = peftlab.load("lora", "pfeiffer", store=store, device="cpu")
    with pytest.raises(IntegrityError, match="a vocabulary is not averaged"):
        bank.compose("both", "ensemble", ["lora", "pfeiffer"])
    bank.compose("mean", "average", ["lora", "lora"])
    alone, mean = (bank.predict("Ada [MASK] .", adapters=name)[0].prediction for name in ("lora", "mean"))
    assert [token_scores(mask) for mask in mean.masks] == [
        [(one.token, one.score) for one in mask] for mask in alone.masks
    ]


def test_merged_model_matches_adapter(store, tmp_path):
    merged = merge("lora", tmp_path / "model", store=store, device="cpu")
    bank = peftlab.load("lora", store=store, device="cpu")
    filled = transformers_mask_predictions(
        AutoModelForMaskedLM.from_pretrained(merged.folder), AutoTokenizer.from_pretrained(merged.folder)
    )
    text = ASKED.format(mask="[MASK]")
    for found, expected in zip(bank.predict(text)[0].prediction.masks, filled(text), strict=True):
        assert [one.token for one in found] == [token for token, _ in expected]
        assert [one.score for one in found] == pytest.approx([score for _, score in expected], abs=1e-5)


def test_cli_check_tune_predict_evaluate_and_export(base, tmp_path):
    recipe, store = text_recipe(tmp_path / "rows", base), tmp_path / "store"
    shown = run("check", recipe, "--show-mask", "12", "--device", "cpu")
    assert shown.exit_code == 0, shown.output
    assert "«[MASK]»" in shown.output
    assert "train.txt:1  " in shown.output
    told = run("tune", recipe, "--store", store, "--device", "cpu")
    assert told.exit_code == 0, told.output
    assert "validation perplexity" in told.output
    assert "The [MASK] was here." in one_line(told.output)
    filled = run("predict", "letters", ASKED.format(mask="[MASK]"), "--store", store)
    assert filled.exit_code == 0, filled.output
    assert "mask 2" in filled.output
    assert "%" in filled.output
    fields = json.loads(run("predict", "letters", "It [MASK] .", "--store", store, "--json").stdout)
    assert [len(mask) for mask in fields["masks"]] == [5]
    assert fields["masks"][0][0].keys() == {"token", "score"}
    refused = run("predict", "letters", "It rained.", "--store", store)
    assert refused.exit_code == 2
    assert "expected text to contain [MASK] for each word to predict" in one_line(refused.output)
    scored = run("evaluate", "letters", "--data", tmp_path / "rows" / "test.txt", "--store", store)
    assert "perplexity" in scored.output
    assert run("chat", "letters", "--store", store).exit_code == 2
    for form in ("peft", "merged"):
        assert run("export", "letters", "--to", form, "--output", tmp_path / form, "--store", store).exit_code == 0
    card = (store / "letters" / "1" / "README.md").read_text()
    assert "pipeline_tag: fill-mask" in card
    assert f'AutoModelForMaskedLM.from_pretrained(\n    "{base}"\n)' in card
    assert "objective: masked-lm" in card

"""Translation and summarization: rows, losses and what is written, against plain Transformers and PEFT."""

import json
from types import SimpleNamespace

import pytest
import sacrebleu
import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import peftlab
from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.errors import IntegrityError, RecipeError
from peftlab.interop import merge
from peftlab.runtime import Bank
from peftlab.store import Store
from peftlab.tasks.inputs.features import IGNORED
from peftlab.tasks.inputs.text import TextInputs
from peftlab.tasks.prediction import forward
from peftlab.tasks.summarization import SummarizationTask
from peftlab.tasks.task import ModelContext
from peftlab.tasks.translation import TranslationTask
from tests import task_stores
from tests.runs import prepared_run
from tests.sequence_models import KINDS, PAIRS, build_sequence_model, translation_recipe
from tests.task_stores import one_line
from tests.untrained import publish_untrained

TEXTS = ["the train was late", "it rained in Rome and then the train was late again", "nobody", "Ada wrote"]
METHODS = {
    "lora": {"type": "lora", "r": 4},
    "decoder": {"type": "lora", "r": 8, "target_modules": ["q", "v"]},
    "dora": {"type": "lora", "r": 2, "use_dora": True},
    "ia3": {"type": "ia3"},
    "pfeiffer": {"type": "bottleneck", "variant": "pfeiffer"},
    "houlsby": {"type": "bottleneck", "variant": "houlsby"},
    "prefix": {"type": "prefix", "num_virtual_tokens": 3},
    "bitfit": {"type": "bitfit"},
    "last-layers": {"type": "last-layers", "layers": 1},
}
ATTENTION = {"bart": ["q_proj", "v_proj"], "t5": ["q", "v"]}
WITHOUT = {"t5": {"bitfit"}}  # T5 has no biases


def supported_methods(kind):
    """Those that go with a base of this kind."""
    chosen = {name: method for name, method in METHODS.items() if name not in WITHOUT.get(kind, ())}
    return {**chosen, "decoder": {**METHODS["decoder"], "target_modules": ATTENTION[kind]}}


@pytest.fixture(scope="module", params=["t5", "bart"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def base(kind, tmp_path_factory):
    return build_sequence_model(tmp_path_factory.mktemp(kind), kind)


@pytest.fixture(scope="module")
def store(kind, base, tmp_path_factory):
    """Untrained, stirred adapters of several methods on one base."""
    folder = tmp_path_factory.mktemp("translators")
    recipe = translation_recipe(folder / "rows", base)
    for name, method in supported_methods(kind).items():
        publish_untrained(folder / "store", recipe, {"name": name, "method": method})
    return folder / "store"


def plain_model(base, adapter):
    """The adapter on its base by Transformers and PEFT alone."""
    model = AutoModelForSeq2SeqLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter.folder).eval()


def transformers_generation(base, model, text, **settings):
    """What Transformers' `generate` writes for one text."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    inputs = tokenizer(text, return_tensors="pt")
    model.generation_config.forced_eos_token_id = None  # BART's default, which would end every text as if it were whole
    with torch.inference_mode():
        written = model.generate(**inputs, **{"max_new_tokens": 12, "do_sample": False, **settings})
    return tokenizer.decode(written[0], skip_special_tokens=True).strip()


def test_generated_text_matches_peft(kind, base, store):
    bank, told = peftlab.load(*supported_methods(kind), store=store, device="cpu"), set()
    for name in supported_methods(kind):
        model = plain_model(base, bank.adapter(name))
        for text in TEXTS:
            written = bank.predict(text, adapters=name)[0].prediction.written
            assert written == transformers_generation(base, model, text), name
            told.add(written)
    assert len(told) > 2 * len(TEXTS)


@pytest.mark.parametrize("beams", [1, 3])
def test_mixed_batch_matches_single_rows(kind, base, store, beams):
    names = list(supported_methods(kind))
    bank = peftlab.load(*names, store=store, device="cpu")
    for name in names:
        bank.task(name).generation["num_beams"] = beams
    asked = [(name, text) for text in TEXTS for name in names]
    mixed = bank.predict([text for _, text in asked], adapters=[name for name, _ in asked])
    for (name, text), answer in zip(asked, mixed, strict=True):
        assert answer == bank.predict(text, adapters=name)[0]
        if text == TEXTS[1]:
            model = plain_model(base, bank.adapter(name))
            assert answer.prediction.written == transformers_generation(base, model, text, num_beams=beams), name


@pytest.mark.parametrize("kind", KINDS)
def test_loss_matches_transformers(tmp_path, kind):
    base = build_sequence_model(tmp_path / "base", kind)
    run = prepared_run(translation_recipe(tmp_path / "rows", base))
    features = run.train_features[:4]
    batch = run.task.head.collate(features, run.base.inputs)
    labels = batch.pop("labels")
    with torch.inference_mode():
        model = run.model.eval()
        mine = run.task.head.loss(run.task.head.logits(model(**batch)), labels)
        batch.pop("decoder_input_ids")
        expected = model(**batch, labels=labels)
    torch.testing.assert_close(mine, expected.loss)
    assert (labels != IGNORED).sum() == sum(map(run.task.head.loss_terms, features))


def test_validation_score_uses_generated_text(tmp_path):
    base = build_sequence_model(tmp_path / "base", "bart")
    learning = {"num_train_epochs": 15, "learning_rate": 5e-3}  # enough in fp32 and in bfloat16
    changes = {"training": learning, "task": {"generation": {"max_new_tokens": 20}}}
    recipe = translation_recipe(tmp_path / "rows", base, times=20, method={"type": "lora", "r": 16}, **changes)
    result = peftlab.tune(recipe, store=tmp_path / "store", device="cpu")
    bank = peftlab.load("translator", store=tmp_path / "store", device="cpu")
    answers = bank.predict([text for text, _ in PAIRS])
    written = [answer.prediction.written for answer in answers]
    expected = sacrebleu.corpus_bleu(written, [[translation for _, translation in PAIRS]]).score
    assert result.scores["validation"].values["bleu"] == expected > 50
    assert sum(answer.prediction.finished for answer in answers) > 2
    again = peftlab.evaluate("translator", tmp_path / "rows" / "pairs.jsonl", store=tmp_path / "store", device="cpu")
    assert again.scores == result.scores["validation"]
    assert again.scores.signatures["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")


def test_merged_model_matches_adapter(base, store, tmp_path):
    merge("lora", tmp_path / "merged", store=store, device="cpu")
    bank = peftlab.load("lora", store=store, device="cpu")
    merged = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    for text in TEXTS:
        assert transformers_generation(tmp_path / "merged", merged, text) == bank.predict(text)[0].prediction.written


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantized_base_matches_peft(tmp_path, base, quantization):
    changes = {"base": {"quantization": quantization}, "training": {"num_train_epochs": 1}}
    result = peftlab.tune(translation_recipe(tmp_path / "rows", base, **changes), store=tmp_path / "store")
    bank = peftlab.load("translator", store=tmp_path / "store", device="cpu")
    model = bank.model("translator")
    for text in TEXTS:
        written = bank.predict(text)[0].prediction.written
        assert written == transformers_generation(base, model, text)
    assert result.adapter.manifest.base.quantization == quantization


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(build_sequence_model(tmp_path_factory.mktemp("bart"), "bart"))


def bind_task(task, tokenizer):
    task.bind_to_base(ModelContext(TextInputs(tokenizer), SimpleNamespace(decoder_start_token_id=1), 64), {}, None)
    return task


def test_every_reference_is_target_even_if_truncated(tokenizer):
    task = bind_task(SummarizationTask(), tokenizer)
    long = "it rained in Rome " * 20
    example = task.read(Row({"text": long, "summary": ["rain", long]}, "rows.jsonl:1"))
    short, truncated = task.encode([example], TextInputs(tokenizer), 32, training=True)[0]
    assert short.inputs["input_ids"] == truncated.inputs["input_ids"]
    assert len(short.inputs["input_ids"]) == 32
    assert tokenizer.decode(short.labels) == "<s>rain</s>"
    assert len(truncated.labels) == 32
    assert truncated.labels[-1] != tokenizer.eos_token_id  # no false end is learnt
    assert (task.count(example), task.lost(example, [short, truncated])) == (2, 1)
    (asked,) = task.encode([example], TextInputs(tokenizer), 32, training=False)[0]
    assert asked.truncated
    assert asked.labels is None


def test_prefix_is_added_to_input(tokenizer):
    plain, told = (
        bind_task(SummarizationTask(), tokenizer),
        bind_task(SummarizationTask(prefix="summarize: "), tokenizer),
    )
    row = Row({"text": "Ada came", "summary": "Ada"}, "rows.jsonl:1")
    texts = [
        tokenizer.decode(
            task.encode([task.read(row)], TextInputs(tokenizer), 64, training=True)[0][0].inputs["input_ids"]
        )
        for task in (plain, told)
    ]
    assert texts == ["<s>Ada came</s>", "<s>summarize: Ada came</s>"]


def test_json_references_are_parsed():
    task = SummarizationTask()
    assert task.read(Row({"text": "a", "summary": '["one", "two"]'}, "")).references == ("one", "two")
    assert task.read(Row({"text": "a", "summary": "[sic] one"}, "")).references == ("[sic] one",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "Ada came"}, "expected columns text and summary; found text"),
        ({"text": "Ada came", "summry": "Ada"}, "Is 'summry' the summary?"),
        ({"text": " ", "summary": "Ada"}, "expected text to hold some text"),
        ({"text": "Ada came", "summary": ""}, "expected summary to hold some text, or a list of texts, found ''"),
        ({"text": "Ada came", "summary": []}, "or a list of texts, found []"),
        ({"text": "Ada came", "summary": ["Ada", 3]}, "or a list of texts, found ['Ada', 3]"),
    ],
)
def test_invalid_row_raises_row_error(fields, message):
    with pytest.raises(RowError) as fault:
        SummarizationTask().read(Row(fields, "rows.jsonl:1"))
    assert message in str(fault.value)


def test_long_input_is_truncated(store):
    bank = peftlab.load("lora", store=store, device="cpu")
    short, long = bank.predict(["Ada came", "Ada came home. " * 200])
    assert not short.prediction.truncated
    assert long.prediction.truncated
    assert long.as_dict()["cut"] is True


def test_unsupported_base_or_method_raises_recipe_error(tmp_path, tiny_base, base):
    recipe = translation_recipe(tmp_path / "rows", tiny_base)
    with pytest.raises(RecipeError) as fault:
        peftlab.tune(recipe, store=tmp_path / "store")
    assert "does not support translation" in str(fault.value)
    assert "is a 'bert' model" in str(fault.value)
    for method in ("head", "prompt", "p-tuning", "full"):
        refused = translation_recipe(tmp_path / "other", base, method={"type": method})
        with pytest.raises(RecipeError, match=f"'{method}'"):
            peftlab.tune(refused, store=tmp_path / "store")
    with pytest.raises(RecipeError, match="has no language codes"):
        peftlab.tune(recipe, overrides={"base.model": str(base), "task.source_language": "eng_Latn"})


def test_fp16_is_not_supported_for_t5(kind, store):
    bank = Bank(Store(store), device="cpu", precision="fp16")
    if kind == "t5":
        with pytest.raises(IntegrityError, match="leave the range of fp16: take bf16 or fp32"):
            bank.add("lora")
    else:
        bank.add("lora")


def test_ensemble_and_chat_are_not_supported(store):
    bank = peftlab.load("lora", "ia3", store=store, device="cpu")
    with pytest.raises(IntegrityError, match="ensemble"):
        bank.compose("both", "ensemble", ["lora", "ia3"])
    with pytest.raises(ValueError, match="is for translation; a chat needs an adapter of causal-lm or preference"):
        next(bank.reply([{"role": "user", "content": "Hi"}], adapter="lora"))


def test_cli_tune_predict_and_evaluate(base, tmp_path):
    recipe = translation_recipe(tmp_path / "rows", base, training={"num_train_epochs": 1})
    store = str(tmp_path / "store")
    told = task_stores.run("tune", str(recipe), "--store", store).output
    assert "bleu" in told
    assert "nrefs:1|case:mixed" in one_line(told)
    told = task_stores.run("predict", "translator", "the train was late", "--store", store, "--json").output
    assert json.loads(told).keys() >= {"adapter", "text", "translation", "finished"}
    told = task_stores.run("evaluate", "translator", "--data", str(tmp_path / "rows" / "pairs.jsonl"), "--store", store)
    assert "chrf" in told.output
    assert "4 translations" in told.output
    told = task_stores.run("check", str(recipe), "--show-mask", "1").output
    assert "der Zug war alt" in told


def test_forward_with_labels_returns_token_losses(base, tmp_path):
    run = prepared_run(translation_recipe(tmp_path / "rows", base))
    outputs = forward(run.task, run.model, run.base.inputs, run.train_features[:3])
    assert [int((row > 0).sum()) for row in outputs] == [len(feature.labels) for feature in run.train_features[:3]]
    assert TranslationTask().head.outputs(torch.ones(1, 2, 3), None).shape == (1, 2, 3)

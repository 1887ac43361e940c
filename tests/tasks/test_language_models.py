"""Bases of many languages: NLLB and both mBARTs write and learn as their tokenizers have it, each adapter its own."""

import pytest
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import peftlab
from peftlab.errors import RecipeError
from tests.runs import prepared_run
from tests.sequence_models import PAIRS, translation_recipe
from tests.task_stores import one_line
from tests.untrained import publish_untrained

LETTERS = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZäöüß."
SIZES = {"d_model": 32, "max_position_embeddings": 64, "init_std": 0.5, "pad_token_id": 1, "eos_token_id": 2}
SIZES |= {f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in (("layers", 1), ("ffn_dim", 64))}
SIZES |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
CODES = {"nllb": ("eng_Latn", "deu_Latn"), "mbart50": ("en_XX", "de_DE"), "mbart": ("en_XX", "de_DE")}


def build_multilingual_model(folder, kind):
    """A tiny base of many languages, with the tokenizer class of its kind."""
    torch.manual_seed(0)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *LETTERS]
    numbered, scored = {piece: i for i, piece in enumerate(pieces)}, [(piece, 0.0) for piece in pieces]
    vocabulary = {"vocab": numbered, "merges": []} if kind == "nllb" else {"vocab": scored}
    names = {"nllb": "NllbTokenizer", "mbart50": "MBart50Tokenizer", "mbart": "MBartTokenizer"}
    source, target = CODES[kind]
    tokenizer = getattr(transformers, names[kind])(**vocabulary, src_lang=source, tgt_lang=target)
    tokenizer.save_pretrained(folder)
    shape = {**SIZES, "vocab_size": len(tokenizer), "bos_token_id": 0}
    if kind == "nllb":
        config = transformers.M2M100Config(**shape, decoder_start_token_id=2)
        model = transformers.M2M100ForConditionalGeneration(config)
    else:
        start = {"decoder_start_token_id": 2} if kind == "mbart50" else {}
        model = transformers.MBartForConditionalGeneration(transformers.MBartConfig(**shape, **start))
    model.save_pretrained(folder)
    return folder


def recipe_for(folder, base, kind, **task):
    source, target = CODES[kind]
    return translation_recipe(folder, base, task={"source_language": source, "target_language": target, **task})


@pytest.mark.parametrize("kind", CODES)
def test_inputs_and_loss_match_transformers(kind, tmp_path):
    base = build_multilingual_model(tmp_path / "base", kind)
    run = prepared_run(recipe_for(tmp_path / "rows", base, kind))
    source, target = CODES[kind]
    tokenizer = AutoTokenizer.from_pretrained(base, src_lang=source, tgt_lang=target)
    texts, translations = map(list, zip(*PAIRS, strict=True))
    expected = tokenizer(texts, text_target=translations)
    features = run.train_features[: len(PAIRS)]
    assert [feature.inputs["input_ids"] for feature in features] == expected["input_ids"]
    assert [feature.labels for feature in features] == expected["labels"]
    batch = run.task.head.collate(features, run.base.inputs)
    labels = batch.pop("labels")
    with torch.inference_mode():
        model = run.model.eval()
        mine = run.task.head.loss(run.task.head.logits(model(**batch)), labels)
        batch.pop("decoder_input_ids")
        torch.testing.assert_close(mine, model(**batch, labels=labels).loss)


@pytest.mark.parametrize("kind", CODES)
def test_adapters_generate_different_languages(kind, tmp_path):
    base = build_multilingual_model(tmp_path / "base", kind)
    recipe, other = recipe_for(tmp_path / "rows", base, kind), {"nllb": "fra_Latn"}.get(kind, "fr_XX")
    for name, target in (("german", CODES[kind][1]), ("french", other)):
        publish_untrained(tmp_path / "store", recipe, {"name": name, "task.target_language": target})
    bank = peftlab.load("german", "french", store=tmp_path / "store", device="cpu")
    asked = [(name, text) for text, _ in PAIRS for name in ("german", "french")]
    answers = bank.predict([text for _, text in asked], adapters=[name for name, _ in asked])
    tokenizer = AutoTokenizer.from_pretrained(base, src_lang=CODES[kind][0])
    for (name, text), answer in zip(asked, answers, strict=True):
        language = tokenizer.convert_tokens_to_ids(bank.task(name).target_language)
        begin = {"decoder_start_token_id" if kind == "mbart" else "forced_bos_token_id": language}
        model = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), bank.adapter(name).folder)
        model.generation_config.forced_eos_token_id = None  # a text that is cut is not ended
        with torch.inference_mode():
            told = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=12, **begin)
        assert answer.prediction.written == tokenizer.decode(told[0], skip_special_tokens=True).strip()
    assert len({answer.prediction.written for answer in answers}) > len(PAIRS)


def test_missing_or_unknown_language_raises_recipe_error(tmp_path):
    base = build_multilingual_model(tmp_path / "base", "nllb")
    recipe = translation_recipe(tmp_path / "rows", base, task={"target_language": "deu_Latm"})
    with pytest.raises(RecipeError) as fault:
        peftlab.tune(recipe, store=tmp_path / "store")
    told = one_line(str(fault.value))
    assert "task.source_language: this base has many languages, and needs to know which." in told
    assert "Name it as the tokenizer does: " in told
    assert (
        "task.target_language: the tokenizer of this base knows no language 'deu_Latm'. Did you mean 'deu_Latn'?"
        in told
    )

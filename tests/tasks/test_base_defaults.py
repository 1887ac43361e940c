"""Only the recipe's settings count when text is generated, and every text can end: whatever the base's files say."""

import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

import peftlab
from peftlab.errors import RecipeError
from tests.language_models import ROWS, build_language_model, instruction_recipe
from tests.runs import Losses, prepared_run
from tests.sequence_models import PAIRS, build_sequence_model, translation_recipe
from tests.untrained import publish_untrained

DEFAULTS = {
    "lengths": {"min_length": 56, "max_length": 60},
    "new tokens": {"min_new_tokens": 9, "exponential_decay_length_penalty": [1, 3.0]},
    "repetitions": {"no_repeat_ngram_size": 1, "repetition_penalty": 5.0, "encoder_no_repeat_ngram_size": 1},
    "tokens": {"suppress_tokens": list(range(60, 200)), "bad_words_ids": [[70]], "begin_suppress_tokens": [77]},
    "first and last": {"forced_bos_token_id": 80, "forced_eos_token_id": 1},
    "search": {"num_beams": 3, "length_penalty": 9.0, "early_stopping": True},
    "drawing": {"do_sample": True, "temperature": 3.0, "typical_p": 0.3, "min_p": 0.2},
}
TEXTS = ["Who came?", "Where did it rain?", "Say it."]


@pytest.fixture(scope="module", params=["causal-lm", "translation"])
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    return build_language_model(folder) if request.param == "causal-lm" else build_sequence_model(folder, "bart")


def recipe_on(folder, base):
    is_causal = (base / "config.json").read_text().find('"llama"') > 0
    return instruction_recipe(folder, base) if is_causal else translation_recipe(folder, base)


def with_defaults(base, folder, settings):
    shutil.copytree(base, folder)
    config = (
        GenerationConfig.from_pretrained(base) if (base / "generation_config.json").exists() else GenerationConfig()
    )
    GenerationConfig(**{**config.to_diff_dict(), **settings}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", DEFAULTS)
def test_generation_config_of_base_changes_no_text(base, kind, tmp_path):
    plain = publish_untrained(tmp_path / "store", recipe_on(tmp_path / "rows", base), {"name": "plain"})
    other = with_defaults(base, tmp_path / "other", DEFAULTS[kind])
    run = prepared_run(recipe_on(tmp_path / "rows", other))
    assert run.base.fingerprint == plain.manifest.base.fingerprint
    publish_untrained(tmp_path / "more", recipe_on(tmp_path / "rows", other), {"name": "plain"})
    told = [peftlab.load("plain", store=tmp_path / store, device="cpu").predict(TEXTS) for store in ("store", "more")]
    assert told[0] == told[1]


def test_unused_settings_are_reported(tmp_path):
    base = build_language_model(tmp_path / "base")
    other = with_defaults(base, tmp_path / "other", DEFAULTS["lengths"])
    messages = []

    class Reported(Losses):
        def info(self, message):
            messages.append(message)

    peftlab.check(instruction_recipe(tmp_path / "rows", other), device="cpu", progress=Reported())
    assert "The generation_config of this base is not used (min_length: 56); task.generation is." in messages


def test_end_tokens_are_those_of_tuning(tmp_path):
    """A base whose generation_config names other end tokens later: replies end as they did."""
    base = build_language_model(tmp_path / "base")
    with_ends = with_defaults(base, tmp_path / "ends", {"eos_token_id": [1, 99]})
    adapter = publish_untrained(tmp_path / "store", instruction_recipe(tmp_path / "rows", with_ends), {})
    assert adapter.manifest.task.state["end_tokens"] == [1, 99]
    before = peftlab.load("chat", store=tmp_path / "store", device="cpu").predict(TEXTS)
    (with_ends / "generation_config.json").unlink()
    assert peftlab.load("chat", store=tmp_path / "store", device="cpu").predict(TEXTS) == before


def tokenizer_without_eos(folder, *, after="", marks=()):
    """WordPiece as BERT has it, with a token behind each text if `after`."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *marks]
    pieces = [*special, *map(chr, range(33, 127)), *(f"##{chr(code)}" for code in range(33, 127))]
    core = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    if after:
        core.post_processor = processors.TemplateProcessing(
            single=f"[CLS] $A {after}", special_tokens=[("[CLS]", 2), (after, 3)]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        extra_special_tokens=list(marks),
        model_max_length=128,
    )
    made.save_pretrained(folder)
    return len(made)


def causal_base(folder, kind, marks=()):
    sizes = {"vocab_size": tokenizer_without_eos(folder, marks=marks), "eos_token_id": None, "bos_token_id": None}
    sizes |= (
        {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 128}
        if kind == "gpt2"
        else {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 128,
        }
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize(
    ("task", "row"),
    [
        ({}, {"prompt": "Who came?", "completion": " Nobody."}),
        ({}, {"text": "Nobody came."}),
        ({}, {"instruction": "Who came?", "output": "Nobody."}),
        ({"type": "domain-adaptation"}, {"text": "Nobody came."}),
    ],
)
def test_base_without_eos_is_refused_before_training(tmp_path, kind, task, row):
    recipe = instruction_recipe(tmp_path / "rows", causal_base(tmp_path / "base", kind), task=task)
    if task:
        recipe.write_text(recipe.read_text().replace("  generation:\n    max_new_tokens: 12\n", ""))
    (tmp_path / "rows" / "rows.jsonl").write_text((json.dumps(row) + "\n") * 8)
    with pytest.raises(
        RecipeError, match=r"base.model: the tokenizer of this base has no eos_token, so nothing would end"
    ):
        peftlab.check(recipe, device="cpu")


def test_template_with_an_end_needs_no_eos(tmp_path):
    base = causal_base(tmp_path / "base", "gpt2", ["<|im_start|>", "<|im_end|>"])
    recipe = instruction_recipe(tmp_path / "rows", base, task={"template": "chatml"})
    (tmp_path / "rows" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    publish_untrained(tmp_path / "store", recipe, {})
    assert peftlab.load("chat", store=tmp_path / "store", device="cpu").predict("Who came?")[0].prediction.reply


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_targets_end_with_what_the_tokenizer_writes_behind_them(tmp_path, kind):
    base = build_sequence_model(tmp_path / "base", kind)
    model = AutoModelForSeq2SeqLM.from_pretrained(base)
    for after in ("[SEP]", ""):
        folder = tmp_path / f"base{after}"
        model.resize_token_embeddings(tokenizer_without_eos(folder, after=after))
        model.config.eos_token_id = model.generation_config.eos_token_id = None
        model.save_pretrained(folder)
        recipe = translation_recipe(tmp_path / "rows", folder)
        if after:
            task = publish_untrained(tmp_path / "store", recipe, {}).task
            assert task.state["target"][1] == [3]
            assert peftlab.load("translator", store=tmp_path / "store", device="cpu").predict(PAIRS[0][0])
        else:
            with pytest.raises(RecipeError, match="writes no token behind a target, so nothing would end a text"):
                prepared_run(recipe)


def test_end_that_the_tokenizer_changes_is_refused(tmp_path):
    recipe = instruction_recipe(tmp_path / "rows", causal_base(tmp_path / "base", "gpt2"), task={"template": "chatml"})
    with pytest.raises(RecipeError, match=r"base.model: the tokenizer of this base changes <\|im_end\|>, with which"):
        prepared_run(recipe)

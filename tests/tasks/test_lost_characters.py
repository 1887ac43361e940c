"""Characters that a tokenizer cannot write count as lost targets, for every task that writes."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

import peftlab
from peftlab.errors import RecipeError
from peftlab.tasks.inputs.lost_characters import UNKNOWN_IN_INPUT, UNKNOWN_IN_TARGET, LostCharacters
from tests.language_models import instruction_recipe, save_byte_tokenizer
from tests.sequence_models import translation_recipe

LETTERS = [*map(chr, range(97, 123)), *map(chr, range(65, 91)), *"0123456789.,?!'\"-ÄÖÜäöü#:"]
LOST = ["{a: 1}", "one\ntwo", "雨が降った。", "🙂", "x ~ y", "<b>", "смех"]
KEPT = ["It rained.", "Äpfel, 12!", "Tab\tand  blanks", " around \n"]


def unigram(folder):
    """SentencePiece Unigram as T5 has it: NFKC, white space as one blank, no braces."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    core = Tokenizer(models.Unigram(pieces, unk_id=2))
    core.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace("\n", " "), normalizers.Replace("\t", " ")]
    )
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    core.decoder = decoders.Metaspace()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return _save(core, folder, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def word_piece(folder):
    """Uncased WordPiece as BERT has it, but with an end."""
    special = ["[PAD]", "[UNK]", "[END]"]
    small = [letter for letter in LETTERS if letter.islower() or not letter.isalpha()]
    pieces = [*special, *small, *(f"##{letter}" for letter in small)]
    core = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.post_processor = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 2)])
    return _save(core, folder, pad_token="[PAD]", eos_token="[END]", unk_token="[UNK]")


def _save(core, folder, **special):
    made = PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=128, **special)
    made.save_pretrained(folder)
    return made


KINDS = {"unigram": unigram, "word piece": word_piece}


@pytest.mark.parametrize("kind", KINDS)
def test_characters_are_lost_or_kept(tmp_path, kind):
    lost = LostCharacters(KINDS[kind](tmp_path))
    assert [text for text in LOST if not lost.any_in(text)] == []
    assert [text for text in KEPT if lost.any_in(text)] == []


def test_byte_level_tokenizers_lose_nothing(tmp_path):
    lost = LostCharacters(save_byte_tokenizer(tmp_path))
    assert not any(map(lost.any_in, [*LOST, *KEPT]))


def base_of(folder, kind, *, is_causal):
    tokenizer = KINDS[kind](folder)
    torch.manual_seed(0)
    shared = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if is_causal:
        sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 128}
        AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **shared, **sizes)).save_pretrained(folder)
    else:
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
        AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **shared, **sizes)).save_pretrained(folder)
    return folder


ROWS = {
    "translation": lambda source, target: {"text": source, "translation": target},
    "summarization": lambda source, target: {"text": source, "summary": [target]},
    "causal-lm": lambda source, target: {"prompt": source, "completion": target},
    "domain-adaptation": lambda source, target: {"text": target},
}


def recipe_for(folder, task, kind):
    is_causal = task in ("causal-lm", "domain-adaptation")
    base = base_of(folder / "base", kind, is_causal=is_causal)
    recipe = (instruction_recipe if is_causal else translation_recipe)(folder / "rows", base)
    text = recipe.read_text().replace("type: causal-lm", f"type: {task}").replace("type: translation", f"type: {task}")
    recipe.write_text(text)
    return recipe


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ROWS)
def test_lost_targets_are_counted_and_stop_beyond_max_lost(tmp_path, task, kind):
    recipe = recipe_for(tmp_path, task, kind)
    targets = [*LOST[:3], *["It rained."] * 5]
    lines = [
        json.dumps(ROWS[task]("Rain {1}" if i == 7 else "Rain", target)) + "\n" for i, target in enumerate(targets)
    ]
    (tmp_path / "rows" / "rows.jsonl").write_text("".join(lines))
    (tmp_path / "rows" / "pairs.jsonl").write_text(lines[-2])
    message = (
        r"data.train: train loses 38%: .* 3 of 8 .* lost .*Use a base whose tokenizer knows all characters \(3 rows\)"
    )
    with pytest.raises(RecipeError, match=message):
        peftlab.check(recipe, device="cpu")
    ledger = peftlab.check(recipe, device="cpu", overrides={"data.max_lost": 0.4}).ledgers["train"]
    assert (ledger.num_lost_targets, ledger.targets, ledger.used) == (3, 8, 8)
    inputs = {} if task == "domain-adaptation" else {UNKNOWN_IN_INPUT: 1}
    assert ledger.warnings == {UNKNOWN_IN_TARGET: 3, **inputs}

"""`Bank.reply` and `peftlab chat`: streamed replies, switching of adapters, and errors."""

import threading

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

import peftlab
from peftlab.cli import cli
from peftlab.errors import RecipeError
from peftlab.runtime.streaming import truncate_stream
from tests.conftest import recipe_in
from tests.language_models import build_language_model, instruction_recipe, single_turn_chat, transformers_generation
from tests.task_stores import one_line
from tests.untrained import publish_untrained

CHAT = single_turn_chat("Who wrote the letter?")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_language_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def store(base, tmp_path_factory):
    """Publish two chat adapters, one with beam search, and one for token classification."""
    folder = tmp_path_factory.mktemp("chats")
    recipe = instruction_recipe(folder / "rows", base)
    for seed, name in enumerate(("ada", "alan")):
        publish_untrained(folder / "store", recipe, {"name": name}, seed=seed)
    publish_untrained(folder / "store", recipe, {"name": "beams", "task.generation.num_beams": 2})
    (folder / "tags").mkdir()
    publish_untrained(folder / "store", recipe_in(folder / "tags", base), {})
    return folder / "store"


@pytest.fixture(scope="module")
def bank(store):
    return peftlab.load("ada", "alan", "beams", "ner-tiny", store=store, device="cpu")


def predict_reply(bank, chat, name):
    return bank.predict({"messages": chat}, adapters=name)[0].prediction.reply


def test_reply_chunks_match_prediction(bank):
    for name in ("ada", "alan"):
        assert "".join(bank.reply(CHAT, adapter=name)).strip() == predict_reply(bank, CHAT, name)
    assert predict_reply(bank, CHAT, "ada") != predict_reply(bank, CHAT, "alan")


def test_base_only_reply_matches_plain_transformers(bank, base):
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        AutoTokenizer.from_pretrained(base),
    )
    template = bank.task("ada").state["chat_template"]
    expected = transformers_generation(model, tokenizer, CHAT, template)
    assert (
        "".join(bank.reply(CHAT, adapter="ada", base_only=True)).strip() == expected != predict_reply(bank, CHAT, "ada")
    )


def test_closed_stream_stops_generation(store):
    bank = peftlab.load("ada", store=store, device="cpu")
    bank.task("ada").generation["max_new_tokens"] = 200
    pieces = bank.reply(CHAT)
    next(pieces)
    pieces.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "peftlab-writer"]


def test_reply_raises_for_unsupported_adapters(bank):
    message = "ner-tiny@1 is for token-classification; a chat needs an adapter of causal-lm or preference"
    with pytest.raises(ValueError, match=message):
        next(bank.reply(CHAT, adapter="ner-tiny"))
    with pytest.raises(ValueError, match="beams@1 uses beam search, which cannot be streamed"):
        next(bank.reply(CHAT, adapter="beams"))
    with pytest.raises(RecipeError, match="expected the last message not to have the role assistant"):
        next(bank.reply([*CHAT, {"role": "assistant", "content": "Ada."}], adapter="ada"))


def test_generation_errors_are_raised_from_stream(bank, monkeypatch):
    monkeypatch.setattr("peftlab.runtime.request.generate_texts", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(bank.reply(CHAT, adapter="ada"))


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["\n", "\n Ada", " wrote", " it."], "Ada wrote it."),
        ([" ", "   return", " a + b"], "    return a + b"),
        (["Ada", "<en", "d> and more"], "Ada"),
        (["Ada <en", "d", "less"], "Ada <endless"),
        (["", " ", "<end>"], ""),
        (["Ada <"], "Ada <"),
        (["STOP"], ""),
    ],
)
def test_text_ends_before_first_stop_string(pieces, expected):
    assert "".join(truncate_stream(iter(pieces), ["<end>", "STOP"])) == expected


def run_chat(store, names, *lines):
    return CliRunner().invoke(cli, ["chat", names, "--store", str(store)], input="".join(f"{line}\n" for line in lines))


def test_swap_continues_chat_with_other_adapter(bank, store):
    result = run_chat(store, "ada,alan", CHAT[0]["content"], "/swap alan", "Why?", "/quit", "not heard")
    assert result.exit_code == 0, result.output
    first = predict_reply(bank, CHAT, "ada")
    second = predict_reply(
        bank, [*CHAT, {"role": "assistant", "content": first}, {"role": "user", "content": "Why?"}], "alan"
    )
    assert result.stdout.split() == f"{first} {second}".split()


def test_undo_clear_and_system_change_messages(bank, store):
    result = run_chat(
        store, "ada", "Nobody.", "/undo", "Rome?", "/clear", CHAT[0]["content"], "/system Be brief.", "Who?"
    )
    assert result.exit_code == 0, result.output
    chats = [single_turn_chat(text) for text in ("Nobody.", "Rome?", CHAT[0]["content"], "Who?")]
    chats[-1].insert(0, {"role": "system", "content": "Be brief."})
    assert result.stdout.split() == " ".join(predict_reply(bank, chat, "ada") for chat in chats).split()


def test_unknown_names_and_commands_get_suggestions(store):
    result = run_chat(store, "ada,alan", "/swap alam", "/swpa", "/undo all", "/help")
    output = one_line(result.output)
    assert "no adapter 'alam' in this chat. Did you mean 'alan'?" in output
    assert "no command '/swpa'. Did you mean '/swap'?" in output
    assert "/undo takes no argument; found 'all'." in output
    assert "/system TEXT" in output


def test_chat_requires_generating_adapters(store):
    result = run_chat(store, "ada,ner-tiny", "Who?")
    assert result.exit_code == 2
    assert "ner-tiny is for token-classification; a chat needs an adapter of causal-lm" in one_line(result.output)

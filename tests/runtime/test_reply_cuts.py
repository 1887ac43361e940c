"""A streamed reply says what was cut, and Transformers warns of nothing that the recipe did not ask for."""

import gc
import logging
import threading
import warnings

import pytest

import peftlab
from peftlab.cli.chat import Conversation
from tests.language_models import build_language_model, instruction_recipe, single_turn_chat
from tests.sequence_models import PAIRS, build_sequence_model, translation_recipe
from tests.tasks.test_base_defaults import with_defaults
from tests.untrained import publish_untrained

LONG = "Who came, and why did it rain? " * 60


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuts")
    recipe = instruction_recipe(folder / "rows", build_language_model(folder / "base"))
    publish_untrained(folder / "store", recipe, {})
    return peftlab.load("chat", store=folder / "store", device="cpu")


@pytest.mark.parametrize("question", ["Who came?", LONG])
@pytest.mark.parametrize("stop", [None, "e", "a"])
@pytest.mark.parametrize("base_only", [False, True])
def test_stream_says_what_was_cut(bank, question, stop, base_only):
    bank.task("chat").generation["stop_strings"] = [stop] if stop else []
    stream = bank.reply(single_turn_chat(question), base_only=base_only)
    assert (stream.truncated, stream.finished) == (None, None)
    text = "".join(stream)
    assert stream.truncated == (question == LONG)
    if not base_only:
        expected = bank.predict(question)[0].prediction
        assert (stream.truncated, stream.finished) == (expected.truncated, expected.finished)
        assert text.strip() == expected.reply.strip()
    bank.task("chat").generation["stop_strings"] = []


def test_dropped_stream_stops(bank):
    bank.task("chat").generation["max_new_tokens"] = 200
    stream = bank.reply(single_turn_chat("Who?"))
    next(stream)
    gc.disable()
    try:
        del stream
    finally:
        gc.enable()
    bank.task("chat").generation["max_new_tokens"] = 12
    assert not [thread for thread in threading.enumerate() if thread.name == "peftlab-generate"]


def test_chat_prints_what_was_cut(bank, capsys):
    conversation = Conversation(bank, ["chat"], None)
    conversation._send(LONG)
    printed = " ".join(capsys.readouterr().err.split())
    assert "note: the chat is longer than the adapter's input: its beginning was cut." in printed
    assert "note: the reply was cut at max_new_tokens." in printed


@pytest.mark.parametrize("kind", ["causal-lm", "translation"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_length": 20},
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
        {"num_beams": 4, "early_stopping": True},
    ],
)
def test_transformers_warns_of_nothing(tmp_path, kind, settings):
    is_causal = kind == "causal-lm"
    plain = build_language_model(tmp_path / "plain") if is_causal else build_sequence_model(tmp_path / "plain", "bart")
    base = with_defaults(plain, tmp_path / "base", settings) if settings else plain
    recipe = (instruction_recipe if is_causal else translation_recipe)(tmp_path / "rows", base)
    publish_untrained(tmp_path / "store", recipe, {"name": "one"})
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in ("transformers", "peft")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            bank = peftlab.load("one", store=tmp_path / "store", device="cpu")
            for _ in range(3):
                bank.predict([text for text, _ in PAIRS])
            if is_causal:
                "".join(bank.reply(single_turn_chat("Who?")))
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    assert records == []
    assert [str(one.message) for one in caught if "generat" in str(one.message)] == []

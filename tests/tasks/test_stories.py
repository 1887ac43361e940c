"""A real language model: stories260K learns to follow the instructions of recipes/chat-lora.yaml."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import peftlab
from tests.language_models import single_turn_chat, transformers_generation
from tests.runs import prepared_run

ROOT = Path(__file__).parents[2]
BASE = ROOT.parent / "shared" / "data" / "stories260K"
RECIPE = ROOT / "recipes" / "chat-lora.yaml"
CHANGES = {
    "base.model": str(BASE),
    "task.template": "plain",
    "training.learning_rate": 1e-3,
    "training.num_train_epochs": 2,
}
ASKED = ["Write a story's first sentence about a duck.", "Where did Tim play?", "Make this a question: Lily has a cat."]
pytestmark = pytest.mark.skipif(not BASE.is_dir(), reason="stories260K is not beside the repository (shared/data)")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    return peftlab.tune(RECIPE, overrides=CHANGES, store=tmp_path_factory.mktemp("stories"), device="cpu")


@pytest.fixture(scope="module")
def bank(tuned):
    return peftlab.load(tuned.adapter.name, store=tuned.adapter.folder.parents[1], device="cpu")


def test_training_can_reduce_test_loss(tuned):
    from peftlab.tuning.evaluate import evaluate_split

    untuned = evaluate_split(prepared_run(RECIPE, CHANGES), "test").values["loss"]
    assert tuned.scores["test"].values["loss"] < 0.7 * untuned


def test_reply_matches_peft(tuned, bank):
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, tuned.adapter.folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    template = tuned.adapter.manifest.task.state["chat_template"]
    for question, answer in zip(ASKED, bank.predict(ASKED), strict=True):
        expected = transformers_generation(
            model, tokenizer, single_turn_chat(question), template, max_new_tokens=64, pad_token_id=0
        )
        assert answer.prediction.reply == expected
        assert len(answer.prediction.reply) > 20


def test_reply_stream_matches_prediction(bank):
    pieces = list(bank.reply(single_turn_chat(ASKED[0])))
    assert len(pieces) > 5
    assert "".join(pieces).strip() == bank.predict(ASKED[0])[0].prediction.reply


def finished_ratio(bank):
    """The share of replies to test rows that come to an end of their own."""
    lines = (ROOT / "recipes/data/story-helper/test.jsonl").read_text(encoding="utf8").splitlines()
    rows = [json.loads(line) for line in lines[:30]]
    answers = bank.predict([{key: row[key] for key in ("instruction", "input") if key in row} for row in rows])
    return sum(answer.prediction.finished for answer in answers) / len(answers)


def test_finished_ratio_with_trainable_eos_embedding(tuned, bank, tmp_path):
    """Measured on all test rows: none of 60 replies without it, 55 with it. The base was never taught its `</s>`."""
    changes = {**CHANGES, "method.trainable_token_indices": "endings"}
    result = peftlab.tune(RECIPE, overrides=changes, store=tmp_path, device="cpu")
    assert finished_ratio(peftlab.load(result.adapter.name, store=tmp_path, device="cpu")) > finished_ratio(bank) + 0.5
    assert result.scores["test"].values["loss"] < tuned.scores["test"].values["loss"]

"""Texts without a token, on bases whose tokenizer adds no special ones: predicted, and left out of training."""

import json

import pytest

import peftlab
from peftlab.errors import RecipeError
from peftlab.tuning import check, tune
from tests.language_models import POSITIONS, SIZES, build_language_model, instruction_recipe, save_byte_tokenizer
from tests.task_stores import recipe_for
from tests.untrained import publish_untrained

BLANK = ["", " ", "\u200b", "\n", "the train ."]
TASKS = ["entities", "classes", "topics", "rating", "answers"]


def _llama(size):
    from transformers import LlamaConfig, LlamaModel

    return LlamaModel(LlamaConfig(vocab_size=size, max_position_embeddings=POSITIONS, pad_token_id=1, **SIZES))


def _gpt2(size):
    from transformers import GPT2Config, GPT2Model

    sizes = {"n_positions": POSITIONS, "n_embd": 32, "n_layer": 2, "n_head": 2}
    return GPT2Model(GPT2Config(vocab_size=size, pad_token_id=1, bos_token_id=1, eos_token_id=1, **sizes))


def _bert(size):
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(vocab_size=size, max_position_embeddings=POSITIONS, **SIZES))


@pytest.fixture(scope="module", params=[_llama, _gpt2, _bert])
def base(request, tmp_path_factory):
    """Folder of a base whose tokenizer adds no token."""
    folder = tmp_path_factory.mktemp("plain")
    request.param(len(save_byte_tokenizer(folder, begin=False))).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", TASKS)
def test_text_without_tokens_is_predicted(base, tmp_path, kind):
    publish_untrained(tmp_path / "store", recipe_for(tmp_path, base, kind), {"name": "one"})
    bank = peftlab.load("one", store=tmp_path / "store", device="cpu")
    rows = [{"question": text, "context": text} if kind == "answers" else text for text in BLANK]
    together = [answer.as_dict() for answer in bank.predict(rows)]
    alone = [bank.predict(row)[0].as_dict() for row in rows]
    assert len(together) == len(BLANK)
    assert [row.keys() for row in together] == [row.keys() for row in alone]
    assert json.dumps(together[:4], allow_nan=False)
    for key in ("label", "labels", "answer", "entities"):
        assert [row.get(key) for row in together] == [row.get(key) for row in alone]


def test_row_without_tokens_is_left_out_of_training(base, tmp_path):
    """A tokenizer may delete all characters of a text, as BERT's does with control characters."""
    recipe = recipe_for(tmp_path, base, "classes")
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    odd = [{**row, "text": "\u200b"} for row in rows[:2]]
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in [*odd, *rows]))
    core = json.loads((base / "tokenizer.json").read_text())
    other = tmp_path / "base"
    other.mkdir()
    for file in base.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    core["normalizer"] = {"type": "Replace", "pattern": {"String": "\u200b"}, "content": ""}
    (other / "tokenizer.json").write_text(json.dumps(core))
    checked = check(recipe, overrides={"base.model": str(other)})
    assert checked.ledgers["train"].dropped == {"no words in it": 2}
    short = {"base.model": str(other), "training.num_train_epochs": 1}
    assert tune(recipe, overrides=short, store=tmp_path / "store").adapter.version == 1


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("task", "row", "column"),
    [
        ("causal-lm", {"prompt": "a", "completion": " b"}, "prompt"),
        ("causal-lm", {"text": "it rained ."}, "prompt"),
        ("domain-adaptation", {"text": "it rained ."}, "text"),
    ],
)
def test_prompt_without_tokens_is_refused(tmp_path, kind, task, row, column):
    """Nothing can be generated after no token at all."""
    model = build_language_model(tmp_path / "base", kind)
    save_byte_tokenizer(model, begin=False)
    recipe = instruction_recipe(tmp_path, model, task={"type": task})
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    publish_untrained(tmp_path / "store", recipe, {"name": "one"})
    bank = peftlab.load("one", store=tmp_path / "store", device="cpu")
    with pytest.raises(RecipeError, match=r"row 1.*expected some text: the tokenizer of this base writes no token"):
        bank.predict({column: ""})
    assert bank.predict({column: " "})

"""Packed batches have the loss of padded batches and train the same; otherwise packing is an error."""

import json
import random

import pytest
import torch

import peftlab
from peftlab.errors import RecipeError
from peftlab.tasks.inputs.features import IGNORED, Feature
from peftlab.tasks.inputs.packing import pack_tokens
from tests.language_models import build_language_model, instruction_recipe
from tests.runs import Losses, prepared_run

PADDING = 7
METHODS = [{"type": "lora"}, {"type": "bottleneck"}, {"type": "last-layers"}]


@pytest.fixture(scope="module", params=["llama", "qwen2", "gpt2"])
def base(request, tmp_path_factory):
    return build_language_model(tmp_path_factory.mktemp(request.param), request.param)


def feature(tokens, first=20):
    ids = list(range(first, first + tokens))
    return Feature({"input_ids": ids, "attention_mask": [1] * tokens}, ids)


def test_position_reset_and_ignored_first_labels():
    batch = pack_tokens([feature(3), feature(2, first=40), feature(4, first=60)], 7, PADDING)
    assert batch["input_ids"].tolist() == [[60, 61, 62, 63, 20, 21, 22], [40, 41, *[PADDING] * 5]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2], [0, 1, 0, 1, 2, 3, 4]]
    none = IGNORED
    assert batch["labels"].tolist() == [[none, 61, 62, 63, none, 21, 22], [none, 41, *[none] * 5]]


def test_packed_rows_contain_every_text_within_length():
    lengths = random.Random(0).choices(range(2, 40), k=200)
    batch = pack_tokens([feature(length) for length in lengths], 40, PADDING)
    assert batch["input_ids"].shape[1] <= 40
    assert (batch["labels"] != IGNORED).sum() == sum(length - 1 for length in lengths)
    assert batch["input_ids"].shape[0] <= 1.1 * sum(lengths) / 40 + 1


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["type"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_texts_match_separate_rows(base, tmp_path, method, attention):
    changes = {"base.attn_implementation": attention, "method": method, "training.frozen_cache": None}
    run = prepared_run(instruction_recipe(tmp_path, base), changes)
    losses, gradients = [], []
    for batch in (
        pack_tokens(run.train_features, 120, PADDING),
        pack_tokens(run.train_features, 250, PADDING),
        run.task.head.collate(run.train_features, run.base.inputs),
    ):
        labels = batch.pop("labels")
        run.model.zero_grad()
        loss = run.task.head.loss(run.task.head.logits(run.model(**batch)), labels)
        loss.backward()
        losses.append(float(loss))
        gradients.append([p.grad.clone() for p in run.model.parameters() if p.grad is not None])
    assert losses[:2] == pytest.approx([losses[2]] * 2, abs=1e-5)
    for ours in gradients[:2]:
        for first, second in zip(ours, gradients[2], strict=True):
            torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)


def test_packed_run_matches_padded_run(base, tmp_path):
    progress = []
    for packing in (False, True):
        recipe = instruction_recipe(
            tmp_path / str(packing), base, training={"packing": packing, "bf16": False, "base_dropout": False}
        )
        losses = Losses()
        peftlab.tune(recipe, store=tmp_path / f"store-{packing}", device="cpu", progress=losses)
        progress.append(losses.losses)
    assert progress[1] == pytest.approx(progress[0], abs=1e-4)


def test_unsupported_packed_batch_raises_recipe_error(base, tmp_path, monkeypatch, write_recipe):
    with pytest.raises(RecipeError, match="each text of token-classification needs its own row"):
        prepared_run(write_recipe(training={"packing": True}))
    recipe = instruction_recipe(tmp_path / "rows", base, training={"packing": True})
    with pytest.raises(RecipeError, match="the outputs of frozen layers are cached for each text"):
        prepared_run(recipe, {"method.layers_to_transform": 1})
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda positions: None)
    with pytest.raises(RecipeError, match="packed texts attend to each other: remove packing"):
        prepared_run(recipe)


def test_publish_packed_recipe(base, tmp_path):
    recipe = instruction_recipe(tmp_path / "rows", base, training={"packing": True})
    (tmp_path / "rows" / "more.jsonl").write_text(json.dumps({"text": "Nobody came . " * 60}) + "\n")
    result = peftlab.tune(recipe, overrides={"data.max_length": 64}, store=tmp_path / "store", device="cpu")
    assert result.adapter.manifest.reload_difference < 1e-4
    bank = peftlab.load("chat", store=tmp_path / "store", device="cpu")
    assert bank.predict("Who wrote the letter?")[0].prediction.text == "Who wrote the letter?"

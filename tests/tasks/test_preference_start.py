"""Preference tuning that starts from an adapter: that adapter is the reference, in training, scores and evaluation."""

import math
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import peftlab
from peftlab.errors import IntegrityError
from peftlab.tuning.preference.reference import attach_references
from tests.language_models import build_language_model, instruction_recipe
from tests.runs import Losses, prepared_run
from tests.tasks.test_preference import pair_recipe, perturb_trainable_parameters, target_loss
from tests.untrained import publish_untrained

METHODS = {
    "lora": {"type": "lora", "r": 4},
    "dora": {"type": "lora", "r": 4, "use_dora": True},
    "pfeiffer": {"type": "bottleneck"},
    "prefix": {"type": "prefix", "num_virtual_tokens": 3},
    "full": {"type": "full"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_language_model(tmp_path_factory.mktemp("llama"))


def publish_start(folder, base, method):
    """A supervised adapter `first` with random weights; the recipe of a preference adapter, and what starts it."""
    recipe = instruction_recipe(folder / "first", base, name="first")
    first = publish_untrained(folder / "store", recipe, {"method": METHODS[method]})
    return first, pair_recipe(folder / "pairs", base), {"method": {**METHODS[method], "start_from": "first"}}


@pytest.mark.parametrize("method", METHODS)
def test_reference_is_start_adapter(base, tmp_path, method):
    first, recipe, overrides = publish_start(tmp_path, base, method)
    run = prepared_run(recipe, overrides, store=tmp_path / "store")
    perturb_trainable_parameters(run.model)
    before = {name: tensor.clone() for name, tensor in run.model.named_parameters()}
    pairs = attach_references(run, run.dataset.features["train"][:4])
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.named_parameters())
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    plain = PeftModel.from_pretrained(plain, first.folder).eval()
    for answer in (answer for pair in pairs for answer in pair):
        assert answer.reference == pytest.approx(target_loss(plain, answer), abs=1e-4)
        with plain.disable_adapter():
            assert answer.reference != pytest.approx(target_loss(plain, answer), abs=1e-3)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_first_loss_is_that_of_equal_models_and_scores_agree(base, tmp_path, method):
    _, recipe, overrides = publish_start(tmp_path, base, method)
    losses = Losses()
    tuned = peftlab.tune(recipe, overrides=overrides, store=tmp_path / "store", device="cpu", progress=losses)
    assert losses.losses[0] == pytest.approx(math.log(2), abs=1e-5)
    rows = tmp_path / "pairs" / "rows.jsonl"
    evaluated = peftlab.evaluate("chat", rows, store=tmp_path / "store", device="cpu", precision="fp32")
    assert evaluated.scores.values == pytest.approx(tuned.scores["validation"].values, abs=1e-4)
    shutil.rmtree(tmp_path / "store" / "first")
    with pytest.raises(
        IntegrityError, match=r"compare it with first@1, from which it was tuned .* is not in this store"
    ):
        peftlab.evaluate("chat", rows, store=tmp_path / "store", device="cpu")

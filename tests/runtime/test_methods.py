"""Every method from one recipe by `-o method.type=…`, published, and all served beside each other from one base."""

import json

import pytest
import torch
from peft import PeftModel

import peftlab
from peftlab.base import load_with_head
from peftlab.errors import IntegrityError
from peftlab.interop import merge
from peftlab.methods import METHODS as PEFTLAB_METHODS
from peftlab.methods import method_info
from peftlab.recipe import PEFT_METHODS
from peftlab.tasks.prediction import forward
from tests.methods.test_method_matrix import METHODS
from tests.runtime.test_routing import TOLERANCE, mixed_rows_differ
from tests.serving import build_feature, predict_each
from tests.task_stores import one_line, recipe_for, run

UNMERGEABLE = {"bottleneck", "lily", "prefix", "prompt", "p-tuning"}
SENTENCE = "the train was late , it rained ."


@pytest.fixture(scope="module")
def store(tiny_base, tmp_path_factory):
    """One adapter of each method on one base."""
    folder = tmp_path_factory.mktemp("methods")
    recipe = recipe_for(folder / "classes", tiny_base, "classes", training={"learning_rate": 2e-2})
    for name, fields in METHODS.items():
        peftlab.tune(recipe, overrides={"name": name, "method": fields}, store=folder / "store", device="cpu")
    return folder / "store"


@pytest.fixture(scope="module")
def bank(store):
    return peftlab.load(*METHODS, store=store, device="cpu")


@pytest.mark.parametrize("name", METHODS)
def test_mixed_bank_matches_plain_peft(bank, name):
    task = bank.task(name)
    plain, _ = load_with_head(bank.base.files, task)
    plain = PeftModel.from_pretrained(plain, bank.adapter(name).folder).eval()
    features = [f for text in (SENTENCE, "nobody came .") for f in build_feature(bank, name, {"text": text})]
    mine = predict_each(bank, [(name, feature) for feature in features])
    attached = forward(task, bank.model(name), bank.base.inputs, features)
    theirs = forward(task, plain, bank.base.inputs, features)
    for one, model, other in zip(mine, attached, theirs, strict=True):
        torch.testing.assert_close(model, other, rtol=0, atol=1e-6)
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", METHODS)
def test_merge_matches_or_raises_error(bank, store, tmp_path, name):
    method = METHODS[name]["type"]
    assert bool(method_info(method).merge_error) == (method in UNMERGEABLE)
    if method in UNMERGEABLE:
        with pytest.raises(IntegrityError, match="cannot be merged into its base"):
            merge(name, tmp_path / "model", store=store, device="cpu")
    else:
        merged = merge(name, tmp_path / "model", store=store, device="cpu")
        assert merged.difference <= 1e-5


def test_mixed_batch_matches_single_rows(bank):
    alone = [name for name in METHODS if not bank.is_routed(name)]
    assert alone == ["prompt", "p-tuning", "p-tuning-lstm"]
    assert alone == [
        name for name, section in METHODS.items() if not method_info(section["type"]).supports_mixed_batches
    ]
    assert mixed_rows_differ(bank, list(METHODS), rounds=20) <= TOLERANCE


def test_single_adapter_matches_mixed_bank(bank, store):
    for name in ("pfeiffer", "ia3", "prefix", "p-tuning", "last-layers", "lora"):
        alone = peftlab.load(name, store=store, device="cpu").predict(SENTENCE)
        assert bank.predict(SENTENCE, adapters=name)[0].prediction.label == alone[0].prediction.label


def test_published_file_names(store):
    config = json.loads((store / "houlsby" / "1" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["variant"], config["form"]) == ("BOTTLENECK", "houlsby", "after")
    card = (store / "houlsby" / "1" / "README.md").read_text()
    assert "import peftlab.methods  # pip install peftlab: PEFT itself has no bottleneck adapters\nfrom peft" in card
    for name in ("prefix", "prompt", "p-tuning"):
        assert (
            "import peftlab.methods  # pip install peftlab: PEFT's own"
            in (store / name / "1" / "README.md").read_text()
        )
    assert "import peftlab.methods" not in (store / "lora" / "1" / "README.md").read_text()


@pytest.mark.parametrize(
    "kind", [kind for kind in PEFTLAB_METHODS if kind not in PEFT_METHODS] + ["c3a", "hra", "vblora", "vera"]
)
def test_command_line_method_type_option(tiny_base, tmp_path, kind):
    recipe = recipe_for(tmp_path / "rows", tiny_base, "entities")
    changed = recipe.read_text().replace("method:\n  r: 4\n", "")
    recipe.write_text(changed)
    told = run("tune", recipe, "--store", tmp_path / "store", "-o", f"method.type={kind}")
    assert told.exit_code == 0, told.output
    assert run("predict", "entities", "Ada left Rome .", "--store", tmp_path / "store").exit_code == 0


WRONG = {
    "method.type=bottlneck": "Did you mean 'bottleneck'?",
    "method.type=oft method.oft_blocksize=4": "method.oft_blocksize unknown key. Did you mean 'oft_block_size'?",
    "method.type=hra method.r=eight": "method.r should be a valid integer, not 'eight'.",
    "method.type=c3a method.block_size=7": "PEFT cannot put 'c3a' on this base: The block size",
    "method.type=oft method.r=3 method.oft_block_size=2": "PEFT refuses these fields of 'oft'",
    "method.type=ia3 method.r=3": "unknown key.",
}


@pytest.mark.parametrize(("options", "message"), WRONG.items())
def test_invalid_fields_raise_error_before_training(tiny_base, tmp_path, options, message):
    recipe = recipe_for(tmp_path / "rows", tiny_base, "classes")
    recipe.write_text(recipe.read_text().replace("method:\n  r: 4\n", ""))
    told = run("tune", recipe, "--store", tmp_path / "store", *(part for o in options.split() for part in ("-o", o)))
    assert told.exit_code == 2, told.output
    assert message in one_line(told.output)


def test_fields_of_different_method_error_with_hint(tiny_base, tmp_path):
    recipe = recipe_for(tmp_path / "rows", tiny_base, "classes", method={"lora_alpha": 8})
    told = run("tune", recipe, "--store", tmp_path / "store", "-o", "method.type=ia3")
    assert told.exit_code == 2
    assert one_line(told.output).count("replace the whole section: -o 'method={type: ia3}'.") == 2
    done = run("tune", recipe, "--store", tmp_path / "store", "-o", "method={type: ia3}")
    assert done.exit_code == 0, done.output

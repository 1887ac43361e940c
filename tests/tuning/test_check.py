"""`peftlab check`: it reports the same errors as `tune`, writes nothing, and shows the loss mask."""

import pytest

import peftlab
from peftlab.errors import RecipeError
from tests.architecture_sweep import build_architecture, sweep_recipe
from tests.language_models import build_language_model, instruction_recipe
from tests.task_stores import one_line, run


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_language_model(tmp_path_factory.mktemp("llama"))


def test_valid_recipe_returns_run_without_files(base, tmp_path, monkeypatch):
    recipe = instruction_recipe(tmp_path / "rows", base)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    checked = peftlab.check(recipe, device="cpu")
    assert checked.run.num_trainable == sum(p.numel() for p in checked.run.model.parameters() if p.requires_grad)
    assert checked.ledgers["train"].used == 12
    output = run("check", recipe, "--device", "cpu")
    assert (output.exit_code, output.output.splitlines()[-1]) == (0, "chat can be tuned.")
    assert sorted(tmp_path.rglob("*")) == before


def test_check_raises_same_errors_as_tune(base, tmp_path):
    recipe = instruction_recipe(tmp_path / "rows", base, method={"target_modules": ["query"]})
    with pytest.raises(RecipeError, match="'query' matches no Linear layer of this base"):
        peftlab.check(recipe, device="cpu")
    output = run("check", recipe, "-o", "task.template=chatlm")
    assert output.exit_code == 2
    assert "task.template" in output.output


def test_check_recipe_and_rows_with_missing_base(tmp_path):
    recipe = instruction_recipe(tmp_path / "rows", "nowhere/base")
    output = run("check", recipe)
    assert output.exit_code == 0
    assert "the recipe and the rows are valid, but the base model was not checked" in one_line(output.output)
    (tmp_path / "rows" / "rows.jsonl").write_text('{"question": "Who?"}\n')
    output = run("check", recipe)
    assert output.exit_code == 2
    assert "expected columns messages, or instruction and output" in one_line(output.output)


def test_show_mask_print_rows(base, tmp_path):
    recipe = instruction_recipe(tmp_path / "rows", base, task={"template": "chatml"})
    output = run("check", recipe, "--show-mask", "2", "--device", "cpu")
    assert output.exit_code == 0
    assert "<|im_start|>assistant↵\n«Ada wrote it.<|im_end|>»↵" in output.output
    assert "«It rained in Rome.<|im_end|>»" in output.output
    assert "Le train" not in output.output
    assert "rows.jsonl:2" in output.output


def test_show_mask_without_token_loss_is_usage_error(write_recipe, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "it rained .,bad\nthe train came .,good\n" * 8)
    recipe = write_recipe(
        task={"type": "text-classification"}, data={"train": "rows.csv", "validation": 0.2, "test": None}
    )
    output = run("check", recipe, "--show-mask")
    assert output.exit_code == 2
    assert "has no loss per token, so there is no mask to show" in one_line(output.output)


def test_attention_that_a_base_lacks_is_refused(tmp_path):
    recipe = sweep_recipe(tmp_path, build_architecture("fnet", tmp_path / "base"), "classification")
    message = r"base.attn_implementation: '.*' cannot be loaded with 'flash_attention_2': FNet.* does not support"
    with pytest.raises(RecipeError, match=message):
        peftlab.check(recipe, overrides={"base.attn_implementation": "flash_attention_2"}, device="cpu")


def test_check_refuses_backend_without_launcher_as_tune_does(tmp_path, write_recipe):
    with pytest.raises(RecipeError, match="ddp shares a run among several processes, but there is only one"):
        peftlab.check(write_recipe(training={"distributed": "ddp"}), device="cpu")

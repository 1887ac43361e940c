"""Every command: its output and its exit code."""

import json
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from peftlab.cli import cli
from peftlab.store import Store

BAD_RECIPE = """\
name: ner-bad
base:
  modle: sentence-transformers/all-MiniLM-L6-v2
task:
  type: token-clasification
data:
  train: train.txt
  validation: valdiation.txt
  test: test.txt
training:
  learning_rate: fast
"""


def run(*arguments, stdin=None):
    return CliRunner().invoke(cli, [str(a) for a in arguments], input=stdin, catch_exceptions=False)


def peftlab(*arguments, **options):
    """Run the command in its own process."""
    command = [sys.executable, "-m", "peftlab", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)


def test_help_lists_commands_and_exit_codes():
    result = run("--help")
    assert result.exit_code == 0
    for word in ("tune", "predict", "adapters", "recipe", "Exit codes", "130"):
        assert word in result.output


def test_help_is_fast():
    peftlab("--help")
    began = time.monotonic()
    assert peftlab("--help").returncode == 0
    assert (
        time.monotonic() - began < 5
    )  # far above what it takes, far below what importing torch takes on a busy machine


def test_all_recipe_errors_are_reported_with_lines(tmp_path):
    (tmp_path / "recipe.yaml").write_text(BAD_RECIPE)
    (tmp_path / "train.txt").write_text("[Ada](PER) came .\nNobody left .\n")
    (tmp_path / "validation.txt").write_text("[Ada](PER) left .\n")
    (tmp_path / "test.txt").write_text("[Ada](PER) left on [Monday](DATE) .\n")
    result = peftlab("tune", tmp_path / "recipe.yaml")
    assert result.returncode == 2
    output = result.stderr
    assert "Traceback" not in output
    assert "5 problems; nothing was started." in output
    for line, key, message in (
        (3, "base.modle", "unknown key.\n    Did you mean 'model'?"),
        (5, "task.type", "unknown type 'token-clasification'.\n    Did you mean 'token-classification'?"),
        (11, "training.learning_rate", "should be a valid number, not 'fast'."),
        (8, "data.validation", f"no such file: {tmp_path / 'valdiation.txt'}.\n    Did you mean 'validation.txt'?"),
        (9, "data.test", f"label 'DATE' occurs in test (1×, first at {tmp_path / 'test.txt'}:1)"),
    ):
        assert f"recipe.yaml:{line}  {key}\n    {message}" in output


def test_tune_prints_ledger_scores_and_predict_command(write_recipe, tmp_path):
    store = tmp_path / "store"
    result = run("tune", write_recipe(), "--store", store, "-o", "training.num_train_epochs=1")
    assert result.exit_code == 0
    for words in (
        "rows read",
        "trainable parameters",
        "epoch    1/1",
        "validation f1",
        "Test scores",
        "Published ner-tiny@1",
    ):
        assert words in result.output
    assert f'peftlab predict ner-tiny --store {store} "Your text"' in result.output
    assert run("predict", "ner-tiny", "Ada left Rome .", "--store", store).exit_code == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.num_train_epochs", "not of the form key=value"),
        ("data.train=[", "is not YAML"),
    ],
)
def test_invalid_override_is_usage_error(write_recipe, override, message):
    result = run("tune", write_recipe(), "-o", override)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "peft", "--device", "cpu"], "--device is for --to merged, not for --to peft."),
        (["--to", "vllm", "--trust-remote-code"], "--trust-remote-code is for --to merged, not for --to vllm."),
        (["--from", "qwen3:0.6b"], "--from is for --to ollama, not for --to merged."),
    ],
)
def test_export_rejects_options_without_effect(tmp_path, options, message):
    result = run("export", "any", "--output", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in result.output


def test_unwritable_store_fails_before_training(write_recipe, tmp_path):
    (tmp_path / "store").write_text("a file")
    result = run("tune", write_recipe(), "--store", tmp_path / "store")
    assert result.exit_code == 5
    assert "the store cannot be written" in result.output
    assert "epoch    1/" not in result.output


def test_missing_base_lists_searched_places(write_recipe):
    result = run("tune", write_recipe(base={"model": "nobody/nothing"}))
    assert result.exit_code == 3
    assert "is in none of these places" in result.output


def test_interrupt_saves_checkpoint(write_recipe, tmp_path):
    store = tmp_path / "store"
    arguments = ["tune", write_recipe(), "--store", store, "-o", "training.num_train_epochs=400"]
    arguments += ["-o", "training.early_stopping_patience=null"]
    command = [sys.executable, "-u", "-m", "peftlab", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "epoch    1/" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(2)
    _, output = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "nothing was published" in output
    assert "is kept: continue with the same command and --resume" in output
    assert "Traceback" not in output
    assert Store(store).names() == []
    assert run("adapters", "list", "--store", store).exit_code == 0


def test_predict_without_color_prints_inline_markup(tuned_store):
    result = run("predict", "ner-tiny@1", "Ada Lovelace left Rome .", "--store", tuned_store)
    assert "[Ada Lovelace](PER)" in result.output


def test_predict_json_has_one_object_per_text_and_adapter(tuned_store):
    result = run(
        "predict", "ner-tiny@1,ner-place", "--json", "--store", tuned_store, stdin="Ada left Rome .\n\nÆ 🙂 London\n"
    )
    rows = [json.loads(line) for line in result.output.splitlines()]
    assert [(row["adapter"], row["text"]) for row in rows] == [
        (name, text) for text in ("Ada left Rome .", "", "Æ 🙂 London") for name in ("ner-tiny@1", "ner-place")
    ]
    for row in rows:
        assert set(row) == {"adapter", "text", "entities"}
        for entity in row["entities"]:
            assert set(entity) == {"start", "end", "label", "score", "text"}
            assert row["text"][entity["start"] : entity["end"]] == entity["text"]


def test_predict_reads_lines_or_json_rows_from_file(tuned_store, tmp_path):
    (tmp_path / "texts.txt").write_text("Ada left .\nNobody came .\n")
    (tmp_path / "texts.jsonl").write_text('{"text": "Ada left ."}\n{"text": "Nobody came ."}\n')
    outputs = [
        run("predict", "ner-tiny@1", "--json", "--file", tmp_path / name, "--store", tuned_store).output
        for name in ("texts.txt", "texts.jsonl")
    ]
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"txt": "a"}', "texts.jsonl:1\n    expected column tokens, or text; found txt. Is 'txt' the text?"),
        ("{text", "texts.jsonl:1\n    expected one JSON object on this line"),
    ],
)
def test_invalid_input_file_is_reported_with_line(tuned_store, tmp_path, content, message):
    (tmp_path / "texts.jsonl").write_text(content)
    result = run("predict", "ner-tiny", "--file", tmp_path / "texts.jsonl", "--store", tuned_store)
    assert result.exit_code == 2
    assert message in result.output


def test_predict_rejects_two_inputs_and_missing_file(tuned_store, tmp_path):
    assert "not both" in run("predict", "ner-tiny", "a", "--file", "b", "--store", tuned_store).output
    absent = run("predict", "ner-tiny", "--file", tmp_path / "absent.txt", "--store", tuned_store)
    assert (absent.exit_code, "absent.txt" in absent.output) == (2, True)


def test_unknown_adapter_gets_suggestion(tuned_store):
    result = run("predict", "ner-tinny", "a", "--store", tuned_store)
    assert result.exit_code == 3
    assert "Did you mean 'ner-tiny'?" in result.output


@pytest.mark.parametrize(
    "name",
    ["adapter_model.safetensors", "adapter_config.json", "README.md", "recipe.yaml", "curves.png", "peftlab.json"],
)
def test_changed_byte_fails_verify_and_predict(store_copy, name):
    file = store_copy / "ner-tiny" / "2" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    for arguments in (["adapters", "verify", "ner-tiny"], ["adapters", "verify"], ["predict", "ner-tiny", "a"]):
        result = run(*arguments, "--store", store_copy)
        assert result.exit_code == 4
        assert f"{name}: changed" in result.output


def test_verify_reports_invalid_pointer_and_empty_store(store_copy, tmp_path):
    (store_copy / "ner-tiny" / "current").write_text("9")
    damaged = run("adapters", "verify", "--store", store_copy)
    assert damaged.exit_code == 4
    assert "but holds '9'" in damaged.output
    assert "ok  ner-tiny@1" in damaged.output
    assert "No adapters" in run("adapters", "verify", "--store", tmp_path / "none").output


def test_adapters_list_and_show(tuned_store):
    listed = run("adapters", "list", "--store", tuned_store).output
    assert "ner-tiny" in listed
    assert "2 of 2" in listed
    manifests = [
        json.loads(line) for line in run("adapters", "list", "--json", "--store", tuned_store).output.splitlines()
    ]
    assert [manifest["name"] for manifest in manifests] == ["ner-place", "ner-tiny"]
    shown = run("adapters", "show", "ner-tiny@1", "--store", tuned_store).output
    assert "ner-tiny@1" in shown
    assert "Test scores" in shown
    assert json.loads(run("adapters", "show", "ner-tiny@1", "--json", "--store", tuned_store).output)["version"] == 1


def test_list_of_empty_store_suggests_tune(tmp_path):
    result = run("adapters", "list", "--store", tmp_path / "none")
    assert (result.exit_code, "peftlab tune" in result.output) == (0, True)


def test_list_shows_valid_and_invalid_adapters(store_copy):
    (store_copy / "ner-tiny" / "2" / "peftlab.json").write_text("{")
    listed = run("adapters", "list", "--store", store_copy)
    assert listed.exit_code == 0
    assert "ner-place" in listed.output
    assert "peftlab.json: changed" in listed.output


def test_adapters_rollback_and_remove(store_copy):
    assert "ner-tiny now refers to ner-tiny@1" in run("adapters", "rollback", "ner-tiny", "--store", store_copy).output
    asked = run("adapters", "remove", "ner-tiny", "--store", store_copy, stdin="n\n")
    assert asked.exit_code == 1
    assert Store(store_copy).versions("ner-tiny") == [1, 2]
    assert "Deleted ner-tiny@2" in run("adapters", "remove", "ner-tiny@2", "--yes", "--store", store_copy).output
    assert "Deleted ner-tiny@1" in run("adapters", "remove", "ner-tiny", "--yes", "--store", store_copy).output
    assert run("adapters", "remove", "ner-tiny", "--yes", "--store", store_copy).exit_code == 3


def test_recipe_show_prints_complete_valid_recipe(write_recipe, tmp_path):
    shown = run("recipe", "show", write_recipe(), "-o", "training.seed=7").output
    (tmp_path / "shown.yaml").write_text(shown)
    values = YAML(typ="safe").load(shown)
    assert values["method"]["lora_alpha"] == 16
    assert values["data"]["train"] == "train.txt"
    assert run("recipe", "show", tmp_path / "shown.yaml").output == shown


def test_recipe_schema_describes_all_sections():
    schema = json.loads(run("recipe", "schema").output)
    assert set(schema["required"]) == {"name", "base", "task", "data"}
    assert schema["additionalProperties"] is False
    assert "Rank of the update" in schema["$defs"]["Lora"]["properties"]["r"]["description"]


def test_full_disk_prints_error(write_recipe, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device", "checkpoint")

    monkeypatch.setattr("peftlab.tuning.report.files.draw_curves", full)
    result = run("tune", write_recipe(), "--store", tmp_path / "store", "-o", "training.num_train_epochs=1")
    assert result.exit_code == 5
    assert "No space left on device" in result.output
    assert Store(tmp_path / "store").names() == []

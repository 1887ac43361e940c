"""Processes, summaries, and `peftlab bench tuning` on a tiny base model and tiny data."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from peftlab.bench import RunTime, run_process, step_time, summarize, tuning, tuning_setups
from peftlab.bench.processes import call_in_process
from peftlab.cli import cli
from peftlab.cli.bench import print_runs
from peftlab.errors import PeftlabError
from peftlab.tuning.fast import compilation
from tests.in_process_measurement import call_in_this_process

ONE_EPOCH = ["-o", "training.num_train_epochs=1"]


@pytest.fixture
def _two_setups(monkeypatch):
    """Measure only two setups."""
    monkeypatch.setattr(tuning, "OPTIMIZATIONS", {"precision": {"training.bf16": False}})


@pytest.fixture
def _in_this_process(monkeypatch):
    for module in (tuning, step_time):
        monkeypatch.setattr(module, "call_in_process", call_in_this_process)
    monkeypatch.setattr(tuning, "warm_up", lambda: None)


def run(*arguments):
    return CliRunner().invoke(cli, ["bench", "tuning", *map(str, arguments)], catch_exceptions=False)


def make_run(way, seed, seconds, peak_bytes=100, score=0.5):
    parts = {"start": 0.0, "training": seconds / 2, "evaluation": seconds / 4, "end": seconds / 4}
    return RunTime(way, seed, seconds, peak_bytes, score, parts)


def test_run_process_measures_wall_time_and_output():
    measured = run_process([sys.executable, "-c", "import time; time.sleep(0.3); print('done')"])
    assert measured.seconds > 0.3
    assert measured.output == "done\n"


def test_peak_memory_is_per_process():
    """The parent must be a small process, and this one has imported torch."""
    code = """
import sys
from peftlab.bench import run_process
for size in (300_000_000, 0):
    print(run_process([sys.executable, "-c", f"held = b'x' * {size}"]).peak_bytes)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    large, small = map(int, output.split())
    assert large - small == pytest.approx(300e6, rel=0.2)


def test_call_in_process_returns_json_value():
    assert call_in_process("os", "getenv", environment={"WHERE": "inside"}, key="WHERE").value == "inside"


def test_failed_process_raises_with_last_lines():
    with pytest.raises(PeftlabError, match=r"exit code 3:\n  first\n  last"):
        run_process([sys.executable, "-c", "import sys; print('first\\nlast', file=sys.stderr); sys.exit(3)"])


def test_summarize_pairs_runs_by_seed():
    runs = [
        make_run("a", 1, 10.0),
        make_run("b", 1, 5.0, 50, 0.6),
        make_run("b", 2, 8.0, 50, 0.8),
        make_run("a", 2, 40.0),
    ]
    first, second = summarize(runs, "a")
    assert (first.way, first.ratio, first.peak_ratio, first.score, first.score_sd) == ("a", 1.0, 1.0, 0.5, 0.0)
    assert second.ratio == pytest.approx((0.5 + 0.2) / 2)
    assert second.peak_ratio == 0.5
    assert second.score == pytest.approx(0.7)
    assert second.parts["training"] == pytest.approx((0.25 + 0.1) / 2)


def test_summarize_without_memory_and_single_seed():
    (only,) = summarize([make_run("a", 1, 10.0, None)], "a")
    assert (only.peak_ratio, only.peak_bytes, only.score_sd) == (None, None, None)


def test_run_tables_fit_terminal(capsys):
    runs = [make_run(way, seed, seconds) for seed in (1, 2) for way, seconds in (("plain", 60.0), ("+ batching", 15.0))]
    print_runs(summarize(runs, "plain"))
    output = capsys.readouterr().out
    assert "…" not in output
    _, row = [line for line in output.splitlines() if line.startswith("+ batching")]
    assert row.split() == ["+", "batching", "0.00", "0.12", "0.06", "0.06"]


def test_setups_range_from_plain_to_recipe():
    first, *others = tuning_setups()
    assert first.overrides["training.train_sampling_strategy"] == "random"
    assert [len(way.overrides) for way in (first, *others)] == sorted(
        (len(way.overrides) for way in (first, *others)), reverse=True
    )
    assert others[-1].overrides == {}


@pytest.mark.usefixtures("_two_setups", "_in_this_process")
def test_json_has_runs_ways_and_steps(write_recipe):
    result = run(write_recipe(), *ONE_EPOCH, "--json", "--rounds", 1, "--seeds", 3)
    assert result.exit_code == 0
    output = json.loads(result.stdout)
    assert {"recipe", "date", "versions", "machine", "cores", "threads", "runs", "ways", "steps"} == set(output)
    assert (
        [item["way"] for item in output["runs"]] == [item["way"] for item in output["ways"]] == ["plain", "+ precision"]
    )
    for item in output["runs"]:
        assert set(item["parts"]) == {"start", "training", "evaluation", "end"}
        assert sum(item["parts"].values()) == pytest.approx(item["seconds"])
        assert item["seed"] == 3
    assert output["ways"][0]["ratio"] == output["ways"][0]["peak_ratio"] == 1
    assert {item["way"] for item in output["steps"]} == {"limit", "plain PEFT", "peftlab"}
    assert {item["precision"] for item in output["steps"]} == {"fp32", "bf16"}
    assert all(item["ratio"] == 1 for item in output["steps"] if item["way"] == "limit")


@pytest.mark.usefixtures("_two_setups", "_in_this_process")
def test_compile_option_adds_setup(write_recipe, monkeypatch):
    monkeypatch.setattr(compilation, "OPTIONS", {"backend": "eager"})
    output = json.loads(run(write_recipe(), *ONE_EPOCH, "--json", "--rounds", 1, "--compile").stdout)
    assert [item["way"] for item in output["ways"]] == ["plain", "+ precision", "torch.compile"]
    assert {item["way"] for item in output["steps"]} == {"limit", "plain PEFT", "peftlab", "torch.compile"}


@pytest.mark.usefixtures("_two_setups")
def test_tables_show_ratios_before_seconds(write_recipe):
    """The steps run in a new process."""
    result = run(write_recipe(), *ONE_EPOCH, "--only", "steps", "--rounds", 1)
    assert "Whole runs" not in result.output
    head = next(line for line in result.output.splitlines() if "time ÷ limit" in line)
    assert head.index("time ÷ limit") < head.index("milliseconds")


@pytest.mark.usefixtures("_two_setups")
def test_steps_on_quantized_base_raise_recipe_error(write_recipe):
    result = run(write_recipe(), "--only", "steps", "-o", "base.quantization=8bit")
    assert result.exit_code == 2
    assert "single steps cannot be measured on a quantized base model." in result.output


@pytest.mark.usefixtures("_two_setups")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "one"], "'one' is not a list of whole numbers"),
        (["--seeds", "1,1"], "each once"),
        (["-o", "training.epochs=1"], "unknown key"),
        (["-o", "data.train=absent.txt"], "no such file"),
    ],
)
@pytest.mark.parametrize("only", ["runs", "steps"])
def test_invalid_arguments_fail_before_first_run(write_recipe, only, arguments, message):
    result = run(write_recipe(), "--only", only, *arguments)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.usefixtures("_two_setups")
def test_missing_base_and_missing_recipe_fail(write_recipe, tmp_path):
    assert run(write_recipe(base={"model": "nobody/nothing"})).exit_code == 3
    absent = run(tmp_path / "absent.yaml")
    assert (absent.exit_code, "no such recipe" in absent.output) == (2, True)

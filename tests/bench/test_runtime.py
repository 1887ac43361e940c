"""`peftlab bench runtime` on a tiny base model."""

import json

from peftlab.bench import runtime as runtime_bench
from tests.in_process_measurement import call_in_this_process
from tests.task_stores import one_line, run

SMALL_BATCHES = ("--rows", 4, "--tokens", 8, "--rounds", 2, "--adapters", "1,3")
SMALL = (*SMALL_BATCHES, "--registered", "1,2")


def test_json_has_ratios_to_base_model(tiny_base, monkeypatch):
    monkeypatch.setattr(runtime_bench, "call_in_process", call_in_this_process)
    result = run("bench", "runtime", tiny_base, *SMALL, "--json")
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    ways = [f"{way}, {count} adapters" for count in (1, 3) for way in ("peftlab", "plain PEFT")]
    assert list(measured["ratio_to_base"]) == ["bare base", *ways]
    assert measured["ratio_to_base"]["bare base"] == 1
    assert all(seconds > 0 for seconds in measured["seconds"].values())
    assert [load["registered"] for load in measured["loads"]] == [1, 2]
    assert all(0 < load["ready"] < min(load["from_disk"], load["growing"]) for load in measured["loads"])


def test_tables_omit_plain_peft_for_other_methods(tiny_base):
    result = run("bench", "runtime", tiny_base, *SMALL_BATCHES, "--method", "{type: ia3}", "--only", "batches")
    assert result.exit_code == 0, result.output
    assert "A batch of 4 rows × 8 tokens, fp32" in result.output
    assert "plain PEFT  " not in result.output
    assert "Loading an adapter" not in result.output


def test_invalid_runtime_options_fail(tiny_base):
    for options, message in {
        ("nowhere/base",): "base model 'nowhere/base' is in none of these places",
        (tiny_base, "--method", "{type: lora, rr: 8}"): "method.rr Extra inputs are not permitted.",
        (tiny_base, "--method", "lora"): "'lora' is not a section, as in '{type: lora, r: 8}'.",
        (tiny_base, "--adapters", "1,x"): "'1,x' is not a list of whole numbers, as in 1,4,16.",
        (tiny_base, "--adapters", "0"): "'0' should hold numbers from 1 on.",
        (tiny_base, "--only", "loads", "--rows", "4"): "--rows has no effect with --only loads.",
        (tiny_base, "--only", "batches", "--registered", "1"): "--registered has no effect with --only batches.",
    }.items():
        result = run("bench", "runtime", *options)
        assert result.exit_code in (2, 3)
        assert message in one_line(result.output)

"""`peftlab bench runtime`: measured for real on a small base; what cannot be measured is told in words."""

import json

from peftlab.bench import runtime as serving
from tests.measured_here import call_here
from tests.task_stores import one_line, run

SMALL_BATCHES = ("--rows", 4, "--tokens", 8, "--rounds", 2, "--adapters", "1,3")
SMALL = (*SMALL_BATCHES, "--registered", "1,2")


def test_every_case_is_measured_beside_the_bare_base(tiny_base, monkeypatch):
    monkeypatch.setattr(serving, "call_in_process", call_here)
    told = run("bench", "runtime", tiny_base, *SMALL, "--json")
    assert told.exit_code == 0, told.output
    measured = json.loads(told.stdout)
    ways = [f"{way}, {count} adapters" for count in (1, 3) for way in ("peftlab", "plain PEFT")]
    assert list(measured["ratio_to_base"]) == ["bare base", *ways]
    assert measured["ratio_to_base"]["bare base"] == 1
    assert all(seconds > 0 for seconds in measured["seconds"].values())
    assert [load["registered"] for load in measured["loads"]] == [1, 2]
    assert all(0 < load["ready"] < min(load["from_disk"], load["growing"]) for load in measured["loads"])


def test_people_get_tables_and_other_methods_are_not_held_against_peft(tiny_base):
    told = run("bench", "runtime", tiny_base, *SMALL_BATCHES, "--method", "{type: ia3}", "--only", "batches")
    assert told.exit_code == 0, told.output
    assert "A batch of 4 rows × 8 tokens, fp32" in told.output
    assert "plain PEFT  " not in told.output
    assert "Loading an adapter" not in told.output


def test_what_cannot_be_measured_is_told_in_words(tiny_base):
    for options, message in {
        ("nowhere/base",): "base model 'nowhere/base' is in none of these places",
        (tiny_base, "--method", "{type: lora, rr: 8}"): "method.rr Extra inputs are not permitted.",
        (tiny_base, "--method", "lora"): "'lora' is not a section, as in '{type: lora, r: 8}'.",
        (tiny_base, "--adapters", "1,x"): "'1,x' is not a list of whole numbers, as in 1,4,16.",
        (tiny_base, "--adapters", "0"): "'0' should hold numbers from 1 on.",
        (tiny_base, "--only", "loads", "--rows", "4"): "--rows has no effect with --only loads.",
        (tiny_base, "--only", "batches", "--registered", "1"): "--registered has no effect with --only batches.",
    }.items():
        told = run("bench", "runtime", *options)
        assert told.exit_code in (2, 3)
        assert message in one_line(told.output)

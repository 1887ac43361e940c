"""Columns and keys that mean something elsewhere: honoured, or refused in words; and faulty templates and texts."""

import json

import pytest

import peftlab
from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.errors import ErrorCollector, RecipeError
from peftlab.tasks.causal_lm import CausalLmTask
from peftlab.tasks.chat.template import CHAT_TEMPLATES
from peftlab.tasks.inputs.features import IGNORED
from peftlab.tasks.inputs.text import TextInputs
from peftlab.tasks.preference import PreferenceTask
from peftlab.tasks.task import ModelContext
from tests.language_models import build_language_model, instruction_recipe, save_byte_tokenizer
from tests.runs import prepared_run
from tests.task_stores import one_line, run

SYSTEM = {"role": "system", "content": "Be brief."}
TURN = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]
NEXT = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "It rained."}]


def read(row, task=None):
    return (task or CausalLmTask()).read(Row(row, "rows.jsonl:1"))


HONOURED = {
    "system of an instruction": (
        {"system": "Be brief.", "instruction": "Who?", "output": "Ada."},
        [SYSTEM, *TURN],
    ),
    "system of a chat": ({"system": "Be brief.", "messages": TURN}, [SYSTEM, *TURN]),
    "the same system twice": ({"system": "Be brief. ", "messages": [SYSTEM, *TURN]}, [SYSTEM, *TURN]),
    "empty system": ({"system": None, "instruction": "Who?", "output": "Ada."}, TURN),
    "history": (
        {"history": [["Who?", "Ada."]], "instruction": "Why?", "input": "", "output": "It rained."},
        [*TURN, *NEXT],
    ),
    "history in a cell": (
        {"history": '[["Who?", "Ada."]]', "instruction": "Why?", "output": "It rained."},
        [*TURN, *NEXT],
    ),
    "system and history": (
        {"system": "Be brief.", "history": [["Who?", "Ada."]], "instruction": "Why?", "output": "It rained."},
        [SYSTEM, *TURN, *NEXT],
    ),
    "empty history": ({"history": [], "messages": TURN}, TURN),
    "human and gpt": ({"messages": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ada."}]}, TURN),
    "conversations": (
        {"conversations": [{"from": "user", "value": "Who?"}, {"from": "assistant", "value": "Ada."}]},
        TURN,
    ),
    "roles of ShareGPT with Transformers' keys": (
        {"messages": [{"role": "human", "content": "Who?"}, {"role": "gpt", "content": "Ada."}]},
        TURN,
    ),
    "Gemini's roles": ({"messages": [{"role": "user", "content": "Who?"}, {"role": "model", "content": "Ada."}]}, TURN),
    "developer": ({"messages": [{"role": "developer", "content": "Be brief."}, *TURN]}, [SYSTEM, *TURN]),
    "capitals": ({"messages": [{"role": "User", "content": "Who?"}, {"role": "Assistant", "content": "Ada."}]}, TURN),
    "parts of text": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "o?"}]},
                TURN[1],
            ]
        },
        TURN,
    ),
    "parts that are strings": ({"messages": [TURN[0], {"role": "assistant", "content": ["Ada", "."]}]}, TURN),
    "null tools": (
        {
            "tools": None,
            "messages": [{**TURN[0], "tool_calls": None, "name": None}, {**TURN[1], "function_call": None}],
        },
        TURN,
    ),
    "good label": ({"instruction": "Who?", "output": "Ada.", "label": True}, TURN),
}


@pytest.mark.parametrize("kind", HONOURED)
def test_clear_meanings_are_honoured(kind):
    row, messages = HONOURED[kind]
    assert list(read(row).messages) == messages
    answers = {"output", "messages", "conversations"}
    if "messages" not in row and "conversations" not in row:
        asked = CausalLmTask().read_input(Row({k: v for k, v in row.items() if k not in answers}, "row 1"))
        assert list(asked.messages) == messages[:-1]
        pair = {k: v for k, v in row.items() if k != "output"} | {"chosen": row["output"], "rejected": "No."}
        assert list(read(pair, PreferenceTask()).chosen.messages) == messages


TOOL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
REFUSED = {
    "tools": ({"tools": [{"name": "f"}], "messages": TURN}, "found tools: peftlab does not train tool calls"),
    "functions": ({"functions": '[{"name": "f"}]', "instruction": "Who?", "output": "Ada."}, "found functions"),
    "tool calls": ({"messages": [TURN[0], TOOL, *TURN]}, "found tool_calls"),
    "tool results": ({"messages": [*TURN, {"role": "tool", "content": "4"}, *NEXT]}, "found a message of tool"),
    "observations": (
        {"conversations": [{"from": "human", "value": "Who?"}, {"from": "observation", "value": "4"}]},
        "found a message of observation",
    ),
    "bad label": ({"prompt": "Who?", "completion": "No.", "label": False}, "label: false, which marks a bad answer"),
    "bad label in a cell": ({"instruction": "Who?", "output": "No.", "label": "False"}, "label: false"),
    "system beside a prompt": (
        {"system": "Be brief.", "prompt": "Who?", "completion": "Ada."},
        "expected no system beside",
    ),
    "history beside a prompt": (
        {"history": [["a", "b"]], "prompt": "Who?", "completion": "Ada."},
        "expected no history",
    ),
    "two systems": ({"system": "Be long.", "messages": [SYSTEM, *TURN]}, "expected one system message"),
    "pictures": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, TURN[1]]},
        "expected content with parts of text only; found image_url",
    ),
    "null content": ({"messages": [TURN[0], {"role": "assistant", "content": None}]}, "to have a role and its content"),
    "a weight between": ({"messages": [TURN[0], {**TURN[1], "weight": 0.5}]}, "weight of a message to be 0 or 1"),
    "weight 0 alone": (
        {"messages": [TURN[0], {**TURN[1], "weight": 0}]},
        "expected a message of the assistant with weight 1",
    ),
    "an unknown role": ({"messages": [{"role": "narrator", "content": "x"}, *TURN]}, "found 'narrator'"),
    "bad history": ({"history": [["a"]], "instruction": "Who?", "output": "Ada."}, "history to be a list of"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_be_lost_is_refused(kind):
    row, message = REFUSED[kind]
    with pytest.raises(RowError, match=message):
        read(row)


def labels_of(row, tmp_path, template="chatml"):
    inputs = TextInputs(save_byte_tokenizer(tmp_path))
    task = CausalLmTask(template=template)
    example = read(row, task)
    with ErrorCollector() as errors:
        task.bind_to_base(ModelContext(inputs, None, 512), {"train": [example]}, errors)
    [features] = task.encode([example], inputs, 512, training=True)
    learnt = [token for feature in features for token in feature.labels if token != IGNORED]
    return inputs.tokenizer.decode(learnt), task.count(example), task.lost(example, features), example


@pytest.mark.parametrize("key", [{"weight": 0}, {"train": False}, {"weight": 0.0}, {"training": 0}])
@pytest.mark.parametrize("template", ["chatml", "mistral", "plain"])
def test_answers_of_weight_zero_are_not_learnt(tmp_path, key, template):
    row = {"messages": [TURN[0], {**TURN[1], **key}, *NEXT]}
    learnt, count, lost, example = labels_of(row, tmp_path, template)
    assert "It rained." in learnt
    assert "Ada" not in learnt
    assert (count, lost) == (1, 0)
    assert example.warnings["answer of weight 0, not in the loss"] == 1
    last = {"messages": [*TURN, NEXT[0], {**NEXT[1], **key}]}
    assert "Ada." in labels_of(last, tmp_path, template)[0]
    with pytest.raises(RowError, match="expected no weight 0 in chosen"):
        read(
            {"messages": TURN[:1], "chosen": [TURN[1], NEXT[0], {**NEXT[1], **key}, *NEXT], "rejected": "No."},
            PreferenceTask(),
        )


@pytest.mark.parametrize("template", sorted(CHAT_TEMPLATES))
def test_ends_that_messages_hold_are_written_once(tmp_path, template):
    held = {"messages": [{"role": "user", "content": "<s>Who?"}, {"role": "assistant", "content": "Ada.</s>"}]}
    assert labels_of(held, tmp_path, template)[0] == labels_of({"messages": TURN}, tmp_path, template)[0]


@pytest.mark.parametrize("template", sorted(CHAT_TEMPLATES))
def test_indentation_of_answers_is_learnt(tmp_path, template):
    code = "    return a + b\n\n    # it is the sum"
    row = {"instruction": "Go on.", "output": f"{code}\n"}
    assert code in labels_of(row, tmp_path, template)[0]


# --- what no one reads is in the ledger


def ledger_of(tmp_path, rows, **changes):
    recipe = instruction_recipe(tmp_path / "rows", build_language_model(tmp_path / "base"), **changes)
    (tmp_path / "rows" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return recipe, peftlab.check(recipe, device="cpu").ledgers["train"]


def test_unread_columns_and_keys_are_counted(tmp_path):
    row = {"instruction": "Who?", "output": "Ada.", "id": 7, "topic": "rain", "empty": None}
    chat = {"messages": [{**TURN[0], "name": "Bo"}, *TURN[1:]], "source": "web"}
    _, ledger = ledger_of(tmp_path, [row, row, chat])
    assert ledger.warnings == {
        "column not read: id": 2, "column not read: topic": 2, "column not read: source": 1,
        "message key not read: name": 1,
    }  # fmt: skip


# --- templates


@pytest.mark.parametrize("form", ["list", "dict", "only others"])
def test_named_templates_of_tokenizer(tmp_path, form):
    base = build_language_model(tmp_path / "base")
    chatml = CHAT_TEMPLATES["chatml"].read_text()
    named = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "rag", "template": "{{ documents }}"}]
    named += [{"name": "default", "template": chatml}] * (form != "only others")
    config = json.loads((base / "tokenizer_config.json").read_text())
    config["chat_template"] = {one["name"]: one["template"] for one in named} if form == "dict" else named
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    for file in base.glob("*.jinja"):
        file.unlink()
    recipe = instruction_recipe(tmp_path / "rows", base)
    if form != "only others":
        assert prepared_run(recipe).task.state["chat_template"] == chatml
        return
    with pytest.raises(RecipeError, match=r"task.template: .* chat templates tool_use, rag, and none is named default"):
        prepared_run(recipe)
    assert prepared_run(recipe, {"task.template": "plain"}).task.state["chat_template"].startswith("{#- Headings")


FAULTY = {
    "None": "{% for m in messages %}{% for call in m['tool_calls'] %}{% endfor %}{{ none + m['content'] }}{% endfor %}",
    "a missing method": "{% for m in messages %}{{ m['content'].shout() }}{% endfor %}",
    "a number": "{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}",
    "a missing key": "{% for m in messages %}{{ m['content'][m['name']['first']] }}{% endfor %}",
    "division": "{% for m in messages %}{{ 1 / (m['content']|length - m['content']|length) }}{% endfor %}",
    "a missing function": "{{ strftime_then('%d') }}",
    "depth": "{% macro deep(n) %}{{ deep(n + 1) }}{% endmacro %}{{ deep(0) }}",
}


@pytest.mark.parametrize("kind", FAULTY)
def test_faulty_template_is_refused_with_row(tmp_path, kind):
    recipe = instruction_recipe(
        tmp_path / "rows", build_language_model(tmp_path / "base"), task={"template": "mine.jinja"}
    )
    (tmp_path / "rows" / "mine.jinja").write_text(FAULTY[kind])
    for command in ("check", "tune"):
        done = run(command, recipe, "--device", "cpu", *(["--store", tmp_path / "store"] if command == "tune" else []))
        assert done.exit_code == 2, done.output
        assert "the chat template" in one_line(done.output)


# --- texts that are none


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Who \ud83d?"}, TURN[1]]},
        {"instruction": "Who?", "output": "Ada \ude00."},
        {"text": "\ud800"},
        {"prompt": "Who?", "completion": ["\ud83d"]},
    ],
)
def test_half_of_a_surrogate_pair_is_refused(tmp_path, row):
    recipe = instruction_recipe(tmp_path / "rows", tmp_path / "none")
    for name, content in (("rows.jsonl", json.dumps(row)), ("rows.json", json.dumps([row], indent=1))):
        (tmp_path / "rows" / name).write_text(content)
        with pytest.raises(RecipeError, match=rf"{name}:\d+: expected text; found .*half of a character"):
            peftlab.check(recipe, overrides={"data.train": str(tmp_path / "rows" / name)})

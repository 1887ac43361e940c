"""`peftlab export --to ollama`: what Ollama reads is what was tuned, token for token, and what it cannot do is told."""

import json
import re
import shutil

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from peftlab.errors import IntegrityError
from peftlab.interop.export import export_adapter
from peftlab.interop.modelfile import Modelfile, find_same_template
from peftlab.store import Store
from peftlab.tasks.causal_lm import CausalLmTask
from peftlab.tasks.chat.template import CHAT_TEMPLATES, ChatTemplate, go_template
from peftlab.tasks.inputs.text import PlainTextInputs
from tests.go_templates import collate, render
from tests.language_models import build_language_model, instruction_recipe, save_byte_tokenizer
from tests.task_stores import one_line, run
from tests.untrained import publish_changed, publish_untrained

COMMAND = re.compile(
    r'^(FROM|ADAPTER|TEMPLATE|SYSTEM|PARAMETER \w+) (?:"""(.*?)"""|([^\n"]*))$', re.DOTALL | re.MULTILINE
)
SYSTEM = {"role": "system", "content": "Be brief.\n\nAnd {{ kind }}."}
USER = {"role": "user", "content": 'Who wrote "Flatland"?\n- "A"\n- "B"'}
ANSWER = {"role": "assistant", "content": "It was A. 🙂"}
CHATS = [
    [USER],
    [SYSTEM, USER],
    [USER, ANSWER, USER],
    [SYSTEM, USER, ANSWER, USER],
    [USER, ANSWER, SYSTEM, USER],
    [SYSTEM, ANSWER, USER],
    [{"role": "system", "content": ""}, USER],
]
OWN_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}" + OWN_CHATML
)


def commands(text):
    """The instructions of a Modelfile, as Ollama's parser/parser.go reads them; `stop` may come more than once."""
    left = "\n".join(line for line in COMMAND.sub("", text).splitlines() if line and not line.startswith("#"))
    assert not left, left
    return [(name, quoted or bare) for name, quoted, bare in COMMAND.findall(text)]


def settings(text):
    return {name.removeprefix("PARAMETER "): value for name, value in commands(text) if not name.endswith("stop")}


@pytest.fixture(scope="module")
def tokenizers_by_kind(tmp_path_factory):
    """One that begins texts with `<s>`, as Llama's; one that knows no such token, as Qwen's; one that has it and leaves
    it out, as GPT-2's."""
    folder = tmp_path_factory.mktemp("tokenizers")
    made = {"begins": save_byte_tokenizer(folder / "begins"), "none": save_byte_tokenizer(folder / "none", begin=False)}
    made["leaves-out"] = save_byte_tokenizer(folder / "out")
    made["leaves-out"].backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return made


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_language_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def store(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ollama")
    chats = instruction_recipe(folder / "chats", base, task={"template": "llama-3", "system": "Be brief."})
    publish_untrained(folder / "store", chats, {"name": "chat"})
    rows = folder / "plain.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{i}: ", "completion": "yes"}) + "\n" for i in range(12)))
    data = {"data.train": str(rows), "data.validation": str(rows), "name": "prompts"}
    publish_untrained(folder / "store", folder / "chats" / "recipe.yaml", data)
    return folder / "store"


def modelfile(store, tokenizer, template=None, name="chat", **generation):
    """For an adapter with this template and these settings."""
    adapter = Store(store).verify(name)
    task = CausalLmTask(template="base", system="Be brief.", generation=generation)
    task.state = {"asked by": "instruction", "chat_template": template or CHAT_TEMPLATES["chatml"].read_text()}
    return Modelfile(adapter, task, PlainTextInputs(tokenizer))


@pytest.mark.parametrize("chat", range(len(CHATS)))
@pytest.mark.parametrize("kind", ["begins", "none", "leaves-out"])
@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_go_template_writes_tuned_tokens(store, tokenizers_by_kind, name, kind, chat):
    tokenizer = tokenizers_by_kind[kind]
    source = CHAT_TEMPLATES[name].read_text()
    made = modelfile(store, tokenizer, source)
    go = dict(commands(made.text("adapter.gguf")))["TEMPLATE"]
    written = render(go, {"Messages": collate(CHATS[chat])})
    expected = ChatTemplate(source, tokenizer.special_tokens_map).prompt(CHATS[chat]).text
    ours = tokenizer(expected, add_special_tokens=False).input_ids
    theirs = tokenizer(written).input_ids  # llama.cpp begins texts as the tokenizer does
    if name == "chatml" and kind == "begins":
        assert theirs == [tokenizer.bos_token_id, *ours]
        assert any("Ollama begins each chat with <s>" in note for note in made.warnings)
    else:
        assert theirs == ours
        assert not any("begins each chat" in note for note in made.warnings)


def test_all_chat_templates_have_go_templates():
    for name, file in CHAT_TEMPLATES.items():
        assert ("bos_token" in go_template(name)) == ("bos_token" in file.read_text())
        assert "_token" not in go_template(name, bos_token="<s>", eos_token="</s>")
        assert json.dumps('<"s">') in go_template(name, eos_token='<"s">') or "eos_token" not in file.read_text()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (OWN_CHATML, "chatml"),
        (WITH_DEFAULT, None),
        ("{{ raise_exception('no') }}", None),
        ("{{ messages[0]['content'] }}", None),
        *((file.read_text(), name) for name, file in CHAT_TEMPLATES.items()),
    ],
)
def test_template_is_recognized_by_its_output(tokenizers_by_kind, source, name):
    assert find_same_template(source, tokenizers_by_kind["begins"].special_tokens_map) == name


def test_unknown_template_is_unsupported(store, tokenizers_by_kind):
    (reason,) = modelfile(store, tokenizers_by_kind["none"], WITH_DEFAULT).unsupported()
    assert "its chat template is none of those that peftlab can translate" in reason
    assert "chatml, gemma, llama-3, mistral, plain" in reason
    assert "take gguf-lora" in reason
    assert not list(modelfile(store, tokenizers_by_kind["none"], OWN_CHATML).unsupported())


def test_greedy_decoding_sets_zero_temperature(store, tokenizers_by_kind):
    found = settings(modelfile(store, tokenizers_by_kind["none"], temperature=0.5, max_new_tokens=7).text("a.gguf"))
    assert {name: found[name] for name in ("temperature", "num_predict", "repeat_penalty")} == {
        "temperature": "0",
        "num_predict": "7",
        "repeat_penalty": "1.0",
    }
    assert not {"top_p", "top_k", "repeat_last_n"} & found.keys()


def test_sampling_settings_are_written(store, tokenizers_by_kind):
    asked = {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "repetition_penalty": 1.2}
    found = settings(modelfile(store, tokenizers_by_kind["none"], **asked).text("a.gguf"))
    drawn = {name: float(found[name]) for name in ("temperature", "top_p", "top_k", "repeat_penalty", "repeat_last_n")}
    assert drawn == {"temperature": 0.5, "top_p": 0.9, "top_k": 0, "repeat_penalty": 1.2, "repeat_last_n": -1}


def test_beam_search_adds_warning(store, tokenizers_by_kind):
    made = modelfile(store, tokenizers_by_kind["none"], num_beams=4)
    assert any("peftlab searches with 4 beams, and Ollama has no beam search" in note for note in made.warnings)
    assert all(f"# {note}\n" in made.text("a.gguf") for note in made.warnings)


def test_no_repeat_ngram_adds_warning(store, tokenizers_by_kind):
    made = modelfile(store, tokenizers_by_kind["none"], no_repeat_ngram_size=3)
    assert any("peftlab repeats no sequence of 3 tokens, and Ollama has no such rule" in note for note in made.warnings)


def test_stop_strings_are_written(store, tokenizers_by_kind):
    text = modelfile(store, tokenizers_by_kind["none"], stop_strings=["\n\n", 'say "so"']).text("a.gguf")
    stops = [value for name, value in commands(text) if name == "PARAMETER stop"]
    assert stops == ["<|im_end|>", "</s>", "\n\n", 'say "so"']


@pytest.mark.parametrize("stop", ['a """ b', "zero\u200bwidth"])
def test_unquotable_stop_string_is_unsupported(store, tokenizers_by_kind, stop):
    (reason,) = modelfile(store, tokenizers_by_kind["none"], stop_strings=[stop]).unsupported()
    assert "a stop string has three quotes in a row, or characters that a Modelfile cannot contain" in reason


def test_folder_has_modelfile_and_adapter(store, base, tmp_path):
    exported = export_adapter("chat", tmp_path / "made", "ollama", store=store, base_name="llama3.2")
    assert sorted(file.name for file in exported.folder.iterdir()) == ["Modelfile", "adapter.gguf"]
    found = dict(commands((exported.folder / "Modelfile").read_text()))
    assert (found["FROM"], found["ADAPTER"], found["SYSTEM"]) == ("llama3.2", "./adapter.gguf", "Be brief.")
    tokenizer = AutoTokenizer.from_pretrained(base)
    expected = ChatTemplate(CHAT_TEMPLATES["llama-3"].read_text(), tokenizer.special_tokens_map).prompt(CHATS[3]).text
    assert f"<s>{render(found['TEMPLATE'], {'Messages': collate(CHATS[3])})}" == expected
    plain = export_adapter("chat", tmp_path / "plain", "gguf-lora", store=store)
    assert (exported.folder / "adapter.gguf").read_bytes() == (plain.folder / "adapter.gguf").read_bytes()


def test_missing_base_name_leaves_from_open_with_warning(store, base, tmp_path):
    result = run("export", "chat", "--to", "ollama", "--output", tmp_path / "made", "--store", store)
    assert result.exit_code == 0, result.output
    assert "FROM is left open: name the base as Ollama has it (peftlab export … --from NAME)" in one_line(result.output)
    assert f"ollama create chat -f {tmp_path}/made/Modelfile" in one_line(result.output)
    text = (tmp_path / "made" / "Modelfile").read_text()
    assert "FROM" not in dict(commands(text))
    assert f"llama.cpp makes from the folder of {base}" in text
    fields = ("export", "chat", "--to", "ollama", "--output", tmp_path / "again", "--store", store, "--json")
    assert "FROM is left open" in json.loads(run(*fields).stdout)["notes"][0]


def test_unquotable_base_name_raises_error(store, tmp_path):
    with pytest.raises(IntegrityError, match=r"'a\\nb' is neither a name in its library"):
        export_adapter("chat", tmp_path / "made", "ollama", store=store, base_name="a\nb")
    assert not (tmp_path / "made").exists()


def test_completion_adapter_has_plain_prompt_template(store, tmp_path):
    exported = export_adapter("prompts", tmp_path / "made", "ollama", store=store, base_name="x")
    found = dict(commands((exported.folder / "Modelfile").read_text()))
    assert found["TEMPLATE"] == "{{ .Prompt }}"
    assert "SYSTEM" not in found
    assert not exported.warnings


def test_missing_base_raises_base_not_found_error(store, base, tmp_path):
    shutil.copytree(base, tmp_path / "elsewhere")
    moved = {"model": str(tmp_path / "elsewhere")}
    publish_changed(store, "chat", name="moved", told=lambda manifest: manifest["base"].update(moved))
    export_adapter("moved", tmp_path / "made", "ollama", store=store)
    shutil.rmtree(tmp_path / "elsewhere")
    result = run("export", "moved", "--to", "ollama", "--output", tmp_path / "again", "--store", store)
    assert result.exit_code == 3

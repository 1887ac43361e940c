"""`peftlab export --to ollama`: what Ollama reads is what was tuned, token for token, and what it cannot do is told."""

import json
import re
import shutil

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from peftlab.errors import IntegrityError
from peftlab.interop.export import export_adapter
from peftlab.interop.modelfile import Modelfile, same_template
from peftlab.store import Store
from peftlab.tasks.causal_lm import CausalLmTask
from peftlab.tasks.chat.template import CHAT_TEMPLATES, ChatTemplate, go_template
from tests.go_templates import collate, render
from tests.language_models import build_language_model, instruction_recipe, save_byte_tokenizer
from tests.task_stores import one_line, run
from tests.untrained import publish_changed, publish_fresh

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
def tokenizers(tmp_path_factory):
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
    publish_fresh(folder / "store", chats, {"name": "chat"})
    rows = folder / "plain.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{i}: ", "completion": "yes"}) + "\n" for i in range(12)))
    data = {"data.train": str(rows), "data.validation": str(rows), "name": "prompts"}
    publish_fresh(folder / "store", folder / "chats" / "recipe.yaml", data)
    return folder / "store"


def modelfile(store, tokenizer, template=None, name="chat", **generation):
    """For an adapter with this template and these settings."""
    adapter = Store(store).verify(name)
    task = CausalLmTask(template="base", system="Be brief.", generation=generation)
    task.state = {"asked by": "instruction", "chat_template": template or CHAT_TEMPLATES["chatml"].read_text()}
    return Modelfile(adapter, task, tokenizer)


@pytest.mark.parametrize("chat", range(len(CHATS)))
@pytest.mark.parametrize("kind", ["begins", "none", "leaves-out"])
@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_ollama_reads_the_tokens_that_were_tuned(store, tokenizers, name, kind, chat):
    tokenizer = tokenizers[kind]
    source = CHAT_TEMPLATES[name].read_text()
    made = modelfile(store, tokenizer, source)
    go = dict(commands(made.text("adapter.gguf")))["TEMPLATE"]
    written = render(go, {"Messages": collate(CHATS[chat])})
    expected = ChatTemplate(source, tokenizer.special_tokens_map).prompt(CHATS[chat])
    ours = tokenizer(expected, add_special_tokens=False).input_ids
    theirs = tokenizer(written).input_ids  # llama.cpp begins texts as the tokenizer does
    if name == "chatml" and kind == "begins":
        assert theirs == [tokenizer.bos_token_id, *ours]
        assert any("Ollama begins each chat with <s>" in note for note in made.notes)
    else:
        assert theirs == ours
        assert not any("begins each chat" in note for note in made.notes)


def test_go_templates_are_beside_all_of_ours_and_name_no_other_token():
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
def test_a_template_is_known_by_what_it_writes(tokenizers, source, name):
    assert same_template(source, tokenizers["begins"].special_tokens_map) == name


def test_a_template_of_another_kind_is_refused_with_the_ways_out(store, tokenizers):
    (reason,) = modelfile(store, tokenizers["none"], WITH_DEFAULT).refused()
    assert "its chat template is none of those that peftlab can say" in reason
    assert "chatml, gemma, llama-3, mistral, plain" in reason
    assert "take gguf-lora" in reason
    assert not list(modelfile(store, tokenizers["none"], OWN_CHATML).refused())


def test_greedy_replies_are_greedy_there(store, tokenizers):
    found = settings(modelfile(store, tokenizers["none"], temperature=0.5, max_new_tokens=7).text("a.gguf"))
    assert {name: found[name] for name in ("temperature", "num_predict", "repeat_penalty")} == {
        "temperature": "0",
        "num_predict": "7",
        "repeat_penalty": "1.0",
    }
    assert not {"top_p", "top_k", "repeat_last_n"} & found.keys()


def test_what_is_drawn_is_drawn_there_by_the_same_settings(store, tokenizers):
    asked = {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "repetition_penalty": 1.2}
    found = settings(modelfile(store, tokenizers["none"], **asked).text("a.gguf"))
    drawn = {name: float(found[name]) for name in ("temperature", "top_p", "top_k", "repeat_penalty", "repeat_last_n")}
    assert drawn == {"temperature": 0.5, "top_p": 0.9, "top_k": 0, "repeat_penalty": 1.2, "repeat_last_n": -1}


def test_beams_are_told_to_be_left_out(store, tokenizers):
    made = modelfile(store, tokenizers["none"], num_beams=4)
    assert any("It searches by 4 beams here, and Ollama knows none" in note for note in made.notes)
    assert all(f"# {note}\n" in made.text("a.gguf") for note in made.notes)


def test_a_rule_against_repeating_is_told_to_be_left_out(store, tokenizers):
    made = modelfile(store, tokenizers["none"], no_repeat_ngram_size=3)
    assert any("No run of 3 tokens comes twice here, and Ollama knows no such rule" in note for note in made.notes)


def test_replies_end_where_they_end_here(store, tokenizers):
    text = modelfile(store, tokenizers["none"], stop_strings=["\n\n", 'say "so"']).text("a.gguf")
    stops = [value for name, value in commands(text) if name == "PARAMETER stop"]
    assert stops == ["<|im_end|>", "</s>", "\n\n", 'say "so"']


@pytest.mark.parametrize("stop", ['a """ b', "zero\u200bwidth"])
def test_what_a_modelfile_would_lose_is_refused(store, tokenizers, stop):
    (reason,) = modelfile(store, tokenizers["none"], stop_strings=[stop]).refused()
    assert "an ending has three quotes in a row, or letters that a Modelfile loses" in reason


def test_the_folder_holds_all_that_ollama_needs(store, base, tmp_path):
    handed = export_adapter("chat", tmp_path / "made", "ollama", store=store, base_name="llama3.2")
    assert sorted(file.name for file in handed.folder.iterdir()) == ["Modelfile", "adapter.gguf"]
    found = dict(commands((handed.folder / "Modelfile").read_text()))
    assert (found["FROM"], found["ADAPTER"], found["SYSTEM"]) == ("llama3.2", "./adapter.gguf", "Be brief.")
    tokenizer = AutoTokenizer.from_pretrained(base)
    expected = ChatTemplate(CHAT_TEMPLATES["llama-3"].read_text(), tokenizer.special_tokens_map).prompt(CHATS[3])
    assert f"<s>{render(found['TEMPLATE'], {'Messages': collate(CHATS[3])})}" == expected
    plain = export_adapter("chat", tmp_path / "plain", "gguf-lora", store=store)
    assert (handed.folder / "adapter.gguf").read_bytes() == (plain.folder / "adapter.gguf").read_bytes()


def test_without_a_name_the_place_of_the_base_is_left_open_and_told(store, base, tmp_path):
    told = run("export", "chat", "--to", "ollama", "--output", tmp_path / "made", "--store", store)
    assert told.exit_code == 0, told.output
    assert "FROM is left open: name the base as Ollama has it (peftlab export … --from NAME)" in one_line(told.output)
    assert f"ollama create chat -f {tmp_path}/made/Modelfile" in one_line(told.output)
    text = (tmp_path / "made" / "Modelfile").read_text()
    assert "FROM" not in dict(commands(text))
    assert f"llama.cpp makes of the folder of {base}" in text
    fields = ("export", "chat", "--to", "ollama", "--output", tmp_path / "again", "--store", store, "--json")
    assert "FROM is left open" in json.loads(run(*fields).stdout)["notes"][0]


def test_a_name_that_a_modelfile_cannot_say_is_refused(store, tmp_path):
    with pytest.raises(IntegrityError, match=r"'a\\nb' is no name in its library"):
        export_adapter("chat", tmp_path / "made", "ollama", store=store, base_name="a\nb")
    assert not (tmp_path / "made").exists()


def test_an_adapter_that_goes_on_with_prompts_has_no_template(store, tmp_path):
    handed = export_adapter("prompts", tmp_path / "made", "ollama", store=store, base_name="x")
    found = dict(commands((handed.folder / "Modelfile").read_text()))
    assert found["TEMPLATE"] == "{{ .Prompt }}"
    assert "SYSTEM" not in found
    assert not handed.notes


def test_where_its_base_is_gone_that_is_told(store, base, tmp_path):
    shutil.copytree(base, tmp_path / "elsewhere")
    moved = {"model": str(tmp_path / "elsewhere")}
    publish_changed(store, "chat", name="moved", told=lambda manifest: manifest["base"].update(moved))
    export_adapter("moved", tmp_path / "made", "ollama", store=store)
    shutil.rmtree(tmp_path / "elsewhere")
    told = run("export", "moved", "--to", "ollama", "--output", tmp_path / "again", "--store", store)
    assert told.exit_code == 3

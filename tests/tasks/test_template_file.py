"""`task.template: mine.jinja`: found beside the recipe, checked with it, published with the adapter."""

import shutil

import pytest

import peftlab
from peftlab.errors import RecipeError, TuningInterrupted
from peftlab.recipe import read_recipe
from peftlab.tasks.chat.template import CHAT_TEMPLATES
from tests.language_models import build_language_model, instruction_recipe
from tests.methods.test_trainable_tokens import Stopping
from tests.runs import prepared_run
from tests.task_stores import one_line, run
from tests.tasks.test_causal_lm import plain_reply

MARKED = (
    "{%- for message in messages %}\n"
    "    {%- if message['role'] == 'tool' %}{% continue %}{% endif %}\n"
    "    {%- if message['role'] == 'assistant' %}\n"
    "        {%- generation %}{{ 'A: ' + message['content'] + eos_token }}{% endgeneration %}\n"
    "    {%- else %}\n"
    "        {{- 'Q: ' + message['content'] + '\n' }}\n"
    "    {%- endif %}\n"
    "{%- endfor %}"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_language_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def recipe(base, tmp_path):
    file = instruction_recipe(tmp_path / "rows", base, task={"template": "mine.jinja"})
    shutil.copy(CHAT_TEMPLATES["chatml"], tmp_path / "rows" / "mine.jinja")
    return file


def test_it_writes_and_is_published_as_one_of_ours(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the file lies beside the recipe, not here
    result = peftlab.tune(recipe, store=tmp_path / "store", device="cpu")
    named = peftlab.tune(recipe, overrides={"task.template": "chatml", "name": "named"}, store=tmp_path / "store")
    mine, theirs = (done.adapter.manifest.task for done in (result, named))
    assert mine.state == theirs.state
    assert mine.options["template"] == "mine.jinja"  # no path of this machine
    again = read_recipe(result.adapter.folder / "recipe.yaml")
    assert again.task.template == str(tmp_path / "rows" / "mine.jinja")
    (tmp_path / "rows" / "mine.jinja").unlink()
    bank = peftlab.load("chat", "named", store=tmp_path / "store", device="cpu")
    one, other = (bank.predict("Who came?", adapters=name)[0].prediction.reply for name in ("chat", "named"))
    assert one == other


def test_given_on_the_command_line_it_is_looked_for_here(recipe, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "other.jinja").write_text(MARKED)
    monkeypatch.chdir(tmp_path / "here")
    prepared = prepared_run(recipe, {"task.template": "other.jinja"})
    assert prepared.task.state["chat_template"] == MARKED
    assert prepared.task.encode([prepared.dataset.examples["train"][0]], prepared.base.inputs, 64, training=True)


def test_the_answers_that_it_marks_are_learnt(recipe, base):
    (recipe.parent / "mine.jinja").write_text(MARKED)
    prepared = prepared_run(recipe)
    feature = prepared.train_features[0]
    learnt = [token for token, label in zip(feature.inputs["input_ids"], feature.labels, strict=True) if label != -100]
    text = prepared.base.inputs.tokenizer.decode(learnt)
    assert text.startswith("A: ")
    assert text.endswith("</s>")


def issue(recipe, **changes):
    with pytest.raises(RecipeError) as told:
        prepared_run(recipe, changes)
    return str(told.value)


def test_one_that_is_not_there_is_told_with_the_nearest(recipe):
    (recipe.parent / "mine.jinja").rename(recipe.parent / "mien.jinja")
    told = issue(recipe)
    assert f"{recipe}:8  task.template: there is no {recipe.parent / 'mine.jinja'}. Did you mean 'mien.jinja'?" in told


def test_one_that_is_no_jinja_is_told_with_its_line_beside_all_else_that_is_wrong(recipe):
    file = recipe.parent / "mine.jinja"
    file.write_text("{% generation %}{% endgeneration %}\n{% for m in messages %}\n{{ m['content'] }\n{% endfor %}\n")
    rows = (recipe.parent / "rows.jsonl").read_text()
    (recipe.parent / "rows.jsonl").write_text(rows + '{"nothing": 1}\n')
    told = issue(recipe)
    assert f"{file}:3  task.template: not valid Jinja: unexpected '}}'." in told
    assert "rows.jsonl:13" in told


def test_one_that_cannot_be_read_is_told(recipe):
    (recipe.parent / "mine.jinja").write_bytes(b"\xff\xfe")
    assert "mine.jinja cannot be read: 'utf-8' codec" in issue(recipe)
    (recipe.parent / "mine.jinja").unlink()
    (recipe.parent / "mine.jinja").mkdir()
    assert "mine.jinja cannot be read" in issue(recipe)


def test_files_that_end_otherwise_and_misspelled_names_get_the_names_there_are(recipe):
    told = run("check", recipe, "-o", "task.template=mine.txt")
    assert told.exit_code == 2
    assert "unknown template 'mine.txt'. Known: base, chatml, gemma, llama-3, mistral, plain" in one_line(told.output)
    told = run("check", recipe, "-o", "task.template=5")
    assert "'gemma' or 'plain', or a valid string, not 5" in one_line(told.output)


def test_a_run_does_not_go_on_with_another_template(recipe, tmp_path):
    with pytest.raises(TuningInterrupted):
        peftlab.tune(recipe, store=tmp_path / "store", progress=Stopping(interrupt_at=4))
    (recipe.parent / "mine.jinja").write_text(MARKED)
    with pytest.raises(RecipeError, match="the chat template is not that of the interrupted run"):
        peftlab.tune(recipe, store=tmp_path / "store", resume=True)


def test_chats_are_answered_by_it(recipe, base, tmp_path):
    (recipe.parent / "mine.jinja").write_text(MARKED)
    result = peftlab.tune(recipe, store=tmp_path / "store", device="cpu")
    bank = peftlab.load("chat", store=tmp_path / "store", device="cpu")
    assert bank.predict("Who came?")[0].prediction.reply == plain_reply(base, result.adapter, "Who came?")
    assert bank.task("chat").stop_strings(bank.base.inputs) == ["</s>"]

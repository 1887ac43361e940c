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


def test_template_file_matches_builtin_template(recipe, tmp_path, monkeypatch):
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


def test_override_path_is_relative_to_current_directory(recipe, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "other.jinja").write_text(MARKED)
    monkeypatch.chdir(tmp_path / "here")
    prepared = prepared_run(recipe, {"task.template": "other.jinja"})
    assert prepared.task.state["chat_template"] == MARKED
    assert prepared.task.encode([prepared.dataset.examples["train"][0]], prepared.base.inputs, 64, training=True)


def test_generation_blocks_select_targets(recipe, base):
    (recipe.parent / "mine.jinja").write_text(MARKED)
    prepared = prepared_run(recipe)
    feature = prepared.train_features[0]
    learnt = [token for token, label in zip(feature.inputs["input_ids"], feature.labels, strict=True) if label != -100]
    text = prepared.base.inputs.tokenizer.decode(learnt)
    assert text.startswith("A: ")
    assert text.endswith("</s>")


def recipe_error(recipe, **changes):
    with pytest.raises(RecipeError) as told:
        prepared_run(recipe, changes)
    return str(told.value)


def test_missing_file_error_includes_nearest_name(recipe):
    (recipe.parent / "mine.jinja").rename(recipe.parent / "mien.jinja")
    told = recipe_error(recipe)
    assert f"{recipe}:8  task.template: there is no {recipe.parent / 'mine.jinja'}. Did you mean 'mien.jinja'?" in told


def test_invalid_jinja_error_includes_line(recipe):
    file = recipe.parent / "mine.jinja"
    file.write_text("{% generation %}{% endgeneration %}\n{% for m in messages %}\n{{ m['content'] }\n{% endfor %}\n")
    rows = (recipe.parent / "rows.jsonl").read_text()
    (recipe.parent / "rows.jsonl").write_text(rows + '{"nothing": 1}\n')
    told = recipe_error(recipe)
    assert f"{file}:3  task.template: not valid Jinja: unexpected '}}'." in told
    assert "rows.jsonl:13" in told


def test_file_read_failure_raises_recipe_error(recipe):
    (recipe.parent / "mine.jinja").write_bytes(b"\xff\xfe")
    assert "mine.jinja cannot be read: 'utf-8' codec" in recipe_error(recipe)
    (recipe.parent / "mine.jinja").unlink()
    (recipe.parent / "mine.jinja").mkdir()
    assert "mine.jinja cannot be read" in recipe_error(recipe)


def test_unknown_template_error_lists_names(recipe):
    told = run("check", recipe, "-o", "task.template=mine.txt")
    assert told.exit_code == 2
    assert "unknown template 'mine.txt'. Known: base, chatml, gemma, llama-3, mistral, plain" in one_line(told.output)
    told = run("check", recipe, "-o", "task.template=5")
    assert "'gemma' or 'plain', or a valid string, not 5" in one_line(told.output)


def test_resume_requires_same_template(recipe, tmp_path):
    with pytest.raises(TuningInterrupted):
        peftlab.tune(recipe, store=tmp_path / "store", progress=Stopping(interrupt_at=4))
    (recipe.parent / "mine.jinja").write_text(MARKED)
    with pytest.raises(RecipeError, match="the chat template is not that of the interrupted run"):
        peftlab.tune(recipe, store=tmp_path / "store", resume=True)


def test_reply_uses_template_file(recipe, base, tmp_path):
    (recipe.parent / "mine.jinja").write_text(MARKED)
    result = peftlab.tune(recipe, store=tmp_path / "store", device="cpu")
    bank = peftlab.load("chat", store=tmp_path / "store", device="cpu")
    reply = bank.predict("Who came?")[0].prediction.reply
    assert reply.strip() == plain_reply(base, result.adapter, "Who came?")
    assert bank.task("chat").stop_strings(bank.base.inputs) == ["</s>"]

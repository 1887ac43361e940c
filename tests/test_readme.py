"""The README, run: its recipe reads, its commands parse, its Python works, its tables are true."""

import re
import shlex
from pathlib import Path

import click
import pytest

from peftlab.cli import cli
from peftlab.errors import PeftlabError
from peftlab.recipe import read_recipe
from peftlab.tuning import tune
from tests.conftest import SENTENCES, recipe_in
from tests.task_stores import recipe_for
from tests.untrained import publish_fresh

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def shell_lines():
    lines = "\n".join(blocks("bash")).splitlines()
    return [line.split("  #")[0].split("     #")[0].strip() for line in lines if line.strip()]


def peftlab_commands():
    in_makefile = re.findall(r"\$\(BIN\)/(peftlab .*)", MAKEFILE)
    in_text = re.findall(r"`[^`\n]*?(peftlab (?:tune|predict|evaluate|adapters|recipe|bench) [^`\n]*)`", README)
    return [line.split(" > ")[0] for line in (*shell_lines(), *in_makefile, *in_text) if line.startswith("peftlab ")]


def parse(arguments):
    """Walk down the command groups and parse, without running anything."""
    command, context = cli, None
    while isinstance(command, click.Group):
        context = click.Context(command, parent=context)
        _, command, arguments = command.resolve_command(context, arguments)
    command.make_context(command.name, list(arguments), parent=context)


@pytest.mark.parametrize("line", peftlab_commands())
def test_every_command_parses(line):
    parse(shlex.split(line)[1:])


def test_the_two_first_commands_are_make_targets():
    assert [line.split()[:2] for line in shell_lines()[:2]] == [["make", "demo"], ["make", "test"]]
    for target in ("demo", "test", "check", "fix", "bench"):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)


def test_ci_runs_the_test_command():
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text(encoding="utf8")


def test_the_recipe_reads(tmp_path):
    recipe_text, *_ = blocks("yaml")  # the others are parts of one
    (tmp_path / "recipe.yaml").write_text(recipe_text, encoding="utf8")
    shown, shipped = read_recipe(tmp_path / "recipe.yaml"), read_recipe(ROOT / "recipes" / "ner-lora.yaml")
    assert (shown.name, shown.base, shown.task, shown.method) == (
        shipped.name,
        shipped.base,
        shipped.task,
        shipped.method,
    )


def test_the_python_runs(tmp_path, tiny_base, monkeypatch, capsys):
    """The README's own lines, beside a small recipe and two small adapters under the names it uses."""
    (tmp_path / "recipes").mkdir()
    recipe = recipe_in(tmp_path / "recipes", tiny_base, name="ner-lora.yaml")
    monkeypatch.chdir(tmp_path)
    learning = {"training.num_train_epochs": 20, "training.learning_rate": 2e-2}
    tune(recipe, overrides={"name": "ner-clinic", **learning})
    recipe.write_text(recipe.read_text().replace("ner-tiny", "ner-news"))
    (tmp_path / "recipes" / "data" / "ner-news").mkdir(parents=True)
    (tmp_path / "recipes" / "data" / "ner-news" / "test.txt").write_text(SENTENCES["test"])
    exec(compile(blocks("python")[0], "README.md", "exec"), {})
    assert str(Path("adapters/ner-news/1")) in capsys.readouterr().out


def test_the_python_of_many_adapters_runs(tmp_path, tiny_base, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("sentiment-stays", "sentiment-eats"):
        publish_fresh("adapters", recipe_for(tmp_path / "rows", tiny_base, "classes"), {"name": name})
    _, code = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    asked = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert asked == ["sentiment-stays", "sentiment-eats", "both"]


def test_the_table_of_exit_codes_is_true():
    told = {int(code): text for code, text in re.findall(r"^\| (\d+) \| (.*) \|$", README, re.MULTILINE)}

    def classes(kind):
        yield kind
        for child in kind.__subclasses__():
            yield from classes(child)

    assert {kind.exit_code for kind in classes(PeftlabError)} | {0} == set(told)


def test_the_house_is_as_drawn():
    drawn = re.findall(r"^[├└]── ([\w.]+)", README, re.MULTILINE)
    there = {f.name for f in (ROOT / "peftlab").iterdir() if not f.name.startswith("__")}
    assert set(drawn) == there

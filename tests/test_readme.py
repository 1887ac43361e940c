"""README and docs, run: commands parse, recipes and rows are read, Python runs, links resolve, tables are true."""

import json
import pkgutil
import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from ruamel.yaml import YAML

import peftlab
from peftlab.cli import cli
from peftlab.data import load_rows
from peftlab.errors import ErrorCollector
from peftlab.methods import METHODS
from peftlab.recipe import read_recipe
from peftlab.tasks import TASKS, build_task
from peftlab.tuning import tune
from tests.conftest import SENTENCES, recipe_in
from tests.language_models import build_language_model, instruction_recipe
from tests.recipes import write_merged
from tests.task_stores import recipe_for
from tests.untrained import publish_untrained

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
FOLDERS = ("peftlab", "tests", "benchmarks", "docs", "recipes")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf8")
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
EXTRAS = set(re.findall(r"^([a-z]+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf8"), re.MULTILINE))
PEFTLAB_LINE = re.compile(
    r"peftlab (?:tune|check|predict|evaluate|chat|export|adapters|recipe|bench) [^`\n|]*"
)  # with …, RECIPE or ADAPTER in it, it is no command but the form of one
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def text_of(page):
    return page.read_text(encoding="utf8")


def blocks(page, language):
    return [code for found, code in BLOCK.findall(text_of(page)) if found == language]


def blocks_of_pages(language):
    """Each different block once, under the name of the first page that has it."""
    found = {}
    for page in PAGES:
        for number, code in enumerate(blocks(page, language), start=1):
            found.setdefault(code, f"{page.name}-{number}")
    return [pytest.param(code, id=name) for code, name in found.items()]


def shell_lines():
    """What people type: lines of bash blocks, lines after `$` in output, and commands of the Makefile."""
    typed = [line for page in PAGES for code in blocks(page, "bash") for line in joined(code).splitlines()]
    shown = [line for page in PAGES for line in re.findall(r"^\$ (.*)$", text_of(page), re.MULTILINE)]
    made = re.findall(r"\$\(BIN\)/(peftlab .*)", MAKEFILE)
    return list(dict.fromkeys(line for raw in (*typed, *shown, *made) if (line := without_comment(raw))))


def joined(code):
    """Lines that end with a backslash, with the next one."""
    return re.sub(r"\\\n\s*", "", code)


def without_comment(line):
    return re.split(r"(?:^|\s)#\s", line)[0].strip()


def inline_commands():
    """Commands inside a sentence or a table."""
    quoted = [code for page in PAGES for code in re.findall(r"`([^`\n]+)`", text_of(page))]
    return list(dict.fromkeys(code for code in quoted if PEFTLAB_LINE.fullmatch(code) and is_command(code)))


def is_command(code):
    return "…" not in code and not re.search(r"\b(?:RECIPE|ADAPTER|FILE|COMMAND)\b", code)


def parse(arguments):
    """Walk down the command groups and parse, without running anything."""
    command, context = cli, None
    while isinstance(command, click.Group):
        context = click.Context(command, parent=context)
        _, command, arguments = command.resolve_command(context, arguments)
    command.make_context(command.name, list(arguments), parent=context)


def check_shell_line(line):
    program, *arguments = shlex.split(re.split(r" > ", line)[0])
    if program == "peftlab":
        parse(arguments)
    elif program == "make":
        assert set(arguments) <= TARGETS
    elif program == "pip":
        assert arguments[0] == "install"
        assert set(re.findall(r"\[(\w+)\]", line)) <= EXTRAS
    else:
        assert [program, arguments[0]] == ["python", "-m"]
        assert (ROOT / f"{arguments[1].replace('.', '/')}.py").exists()


@pytest.mark.parametrize("line", [*shell_lines(), *inline_commands()])
def test_command_parses(line):
    check_shell_line(line)


def test_wrong_option_in_a_command_fails():
    with pytest.raises(click.UsageError, match="--flie"):
        check_shell_line("peftlab predict ner-news --flie texts.txt")


def test_first_two_commands_are_make_targets():
    assert [line.split()[:2] for line in blocks(README, "bash")[0].splitlines()] == [["make", "demo"], ["make", "test"]]
    assert {"demo", "test", "check", "docs", "fix", "bench"} <= TARGETS


def test_ci_runs_the_test_command():
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text(encoding="utf8")


def test_readme_is_short():
    assert len(text_of(README).splitlines()) <= 200


def test_first_recipe_equals_the_shipped_one(tmp_path):
    recipe_text, *_ = blocks(README, "yaml")
    (tmp_path / "recipe.yaml").write_text(recipe_text, encoding="utf8")
    shown, shipped = read_recipe(tmp_path / "recipe.yaml"), read_recipe(ROOT / "recipes" / "ner-lora.yaml")
    assert (shown.name, shown.base, shown.task, shown.method) == (
        shipped.name,
        shipped.base,
        shipped.task,
        shipped.method,
    )


@pytest.mark.parametrize("text", blocks_of_pages("yaml"))
def test_recipe_is_read(text, tmp_path):
    """A whole recipe, or sections that replace those of a small one."""
    write_recipe_with(tmp_path, YAML(typ="safe", pure=True).load(text))
    read_recipe(tmp_path / "recipe.yaml")


def write_recipe_with(folder, sections):
    values = {"name": "shown", "base": {"model": "base"}, "task": {"type": "text-classification"}}
    values["data"] = {"train": "rows.jsonl"}
    return write_merged(folder / "recipe.yaml", values, sections, replaced=("task", "method"))


@dataclass
class TaskRows:
    """Rows of a page, with the task that the text before them names."""

    task: str
    lines: str


def rows_of_pages():
    shown = []
    for page in PAGES:
        task, sections = None, re.split(r"^(```\w*\n.*?^```)$", text_of(page), flags=re.DOTALL | re.MULTILINE)
        for part in sections:
            named = [name for name in re.findall(r"^(?:##|  type:) ([\w-]+)$", part, re.MULTILINE) if name in TASKS]
            task = named[-1] if named else task
            if part.startswith("```jsonl"):
                rows = TaskRows(task, part.removeprefix("```jsonl\n").removesuffix("```"))
                shown.append(pytest.param(rows, id=f"{page.name}-{len(shown)}-{task}"))
    return shown


@pytest.mark.parametrize("shown", rows_of_pages())
def test_rows_are_read_by_their_task(shown, tmp_path):
    (tmp_path / "rows.jsonl").write_text(shown.lines, encoding="utf8")
    multi_label = {"multi_label": True} if '"labels": [' in shown.lines else {}
    data = {"train": "rows.jsonl", "validation": "rows.jsonl"}
    write_recipe_with(tmp_path, {"task": {"type": shown.task, **multi_label}, "data": data})
    with ErrorCollector() as errors:
        recipe = read_recipe(tmp_path / "recipe.yaml", None, errors)
        rows = load_rows(recipe.data, errors, plain_text=recipe.task.reads_plain_text)
        _, examples, _ = build_task(recipe.task, rows, errors)
    assert len(examples["train"]) == len(shown.lines.splitlines())


@pytest.mark.parametrize("text", blocks_of_pages("json"))
def test_json_lines_are_objects(text):
    assert all(isinstance(json.loads(line), dict) for line in text.splitlines())


@pytest.fixture(scope="module")
def shown_adapters(tmp_path_factory, tiny_base):
    """A folder with a small recipe, and a store with a small untrained adapter under each name that the pages use."""
    folder = tmp_path_factory.mktemp("shown")
    store = folder / "adapters"
    for name, kind in SHOWN.items():
        publish_untrained(store, recipe_for(folder / kind, tiny_base, kind), {"name": name})
    language_model = tmp_path_factory.mktemp("language-model")
    build_language_model(language_model)
    task = {"type": "causal-lm", "template": "chatml", "generation": {"max_new_tokens": 4}}
    persona = instruction_recipe(tmp_path_factory.mktemp("persona"), language_model, task=task)
    for name in ("persona-a", "persona-b"):
        publish_untrained(store, persona, {"name": name})
    (folder / "recipes" / "data" / "ner-news").mkdir(parents=True)
    recipe = recipe_in(folder / "recipes", tiny_base, name="ner-lora.yaml")
    recipe.write_text(recipe.read_text().replace("ner-tiny", "ner-news"))
    (folder / "recipes" / "data" / "ner-news" / "test.txt").write_text(SENTENCES["test"])
    return folder


SHOWN = {
    "ner-clinic": "entities",
    "qa-notices": "answers",
    "sentiment-stays": "classes",
    "sentiment-eats": "classes",
}


@pytest.mark.parametrize("code", [block for block in blocks_of_pages("python") if "README" not in block.id])
def test_python_of_the_docs_runs(code, shown_adapters, monkeypatch, capsys):
    monkeypatch.chdir(shown_adapters)
    exec(compile(code, "docs", "exec"), names := {"__name__": "shown"})
    assert capsys.readouterr().out or {"model", "METHOD", "TASK"} & names.keys()


def test_python_of_the_readme_tunes_and_mixes(shown_adapters, monkeypatch, capsys):
    monkeypatch.chdir(shown_adapters)
    tuning, mixing = blocks(README, "python")
    exec(compile(tuning, "README.md", "exec"), {})
    assert str(Path("adapters", "ner-news")) in capsys.readouterr().out
    exec(compile(mixing, "README.md", "exec"), {})
    adapters = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert adapters == ["sentiment-stays", "sentiment-eats", "both"]


def test_exit_codes_are_generated_from_error_classes():
    """See tests/cli/test_help.py for the codes themselves."""
    assert "<!-- generated: exit codes -->" in text_of(ROOT / "docs" / "command-line.md")


def shown_package(section, folder):
    """Write the files of a package that the page shows, beside what pip would write; give the recipe section shown."""
    page = text_of(ROOT / "docs" / "extend.md").partition(f"## A {section}\n")[2].partition("\n## ")[0]
    shown = dict(BLOCK.findall(page))
    name = re.match(r"# (\w+)\.py\n", shown["python"])[1]
    (folder / f"{name}.py").write_text(shown["python"])
    (folder / f"{name}-1.dist-info").mkdir()
    (folder / f"{name}-1.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 1\n")
    groups = tomllib.loads(shown["toml"])["project"]["entry-points"]
    lines = [f"[{group}]\n{name} = {value}\n" for group, names in groups.items() for name, value in names.items()]
    (folder / f"{name}-1.dist-info" / "entry_points.txt").write_text("".join(lines))
    return YAML(typ="safe", pure=True).load(shown["text"])


def test_method_of_another_package_is_tuned(shown_adapters, tmp_path, monkeypatch):
    overrides = shown_package("method", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(shown_adapters)
    result = tune("recipes/ner-lora.yaml", overrides={"name": "ner-value", **overrides})
    config = json.loads((result.adapter.folder / "adapter_config.json").read_text())
    assert config["r"] == 8
    assert len(config["target_modules"]) == 2  # of two layers


def test_task_of_another_package_is_tuned(tiny_base, tmp_path, monkeypatch):
    overrides = shown_package("task", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    recipe = recipe_for(tmp_path / "rating", tiny_base, "rating")
    tune(recipe, overrides={"name": "stars", **overrides})
    (answer,) = peftlab.load("stars").predict("the train was quiet .")
    assert answer.prediction.value in (1, 2, 3, 4, 5)


def test_house_lists_every_file_of_the_package():
    listed = re.findall(r"^[├└]── ([\w.]+)", text_of(README), re.MULTILINE)
    there = {f.name for f in (ROOT / "peftlab").iterdir() if not f.name.startswith("__")}
    assert set(listed) == there


def test_table_of_recipes_lists_every_recipe():
    listed = re.findall(r"^\| \[`(recipes/[\w-]+\.yaml)`\]", text_of(ROOT / "docs" / "ready-recipes.md"), re.MULTILINE)
    assert sorted(listed) == sorted(f"recipes/{file.name}" for file in (ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize(
    ("page", "names"), [(README, TASKS), (ROOT / "docs" / "tasks.md", TASKS), (ROOT / "docs" / "methods.md", METHODS)]
)
def test_table_lists_every_task_or_method(page, names):
    assert not [name for name in names if f"`{name}`" not in text_of(page)]


@pytest.mark.parametrize("name", re.findall(r"^::: (.+)$", "".join(map(text_of, PAGES)), re.MULTILINE))
def test_documented_name_exists(name):
    assert pkgutil.resolve_name(name).__doc__


def site_navigation():
    def pages(entry):
        if isinstance(entry, str):
            yield entry
        else:
            for child in entry.values() if isinstance(entry, dict) else entry:
                yield from pages(child)

    settings = re.sub(r"!!python\S*", "", (ROOT / "mkdocs.yml").read_text(encoding="utf8"))
    return list(pages(YAML(typ="safe", pure=True).load(settings)["nav"]))


def test_navigation_lists_every_page():
    """The hook of the site adds the decisions, which are numbered."""
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    written = [page for page in pages if not re.match(r"decisions/\d", page)]
    assert sorted(site_navigation()) == sorted(written)


@pytest.mark.parametrize("page", [*PAGES, *DECISIONS], ids=lambda page: page.name)
def test_links_resolve(page):
    for target in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#[^)\s]*)?\)", without_code(text_of(page))):
        assert not target or (page.parent / target).exists(), f"{page.name} links to {target}"


# files of llama.cpp, and of an example
ELSEWHERE = {"conversion/gpt2.py", "conversion/llama.py", "convert_lora_to_gguf.py", "value_lora.py", "stars.py"}


@pytest.mark.parametrize("page", [*PAGES, *DECISIONS], ids=lambda page: page.name)
def test_python_files_named_in_pages_exist(page):
    there = [f"/{file.relative_to(ROOT).as_posix()}" for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    named = set(re.findall(r"[\w/]+\.py\b", text_of(page))) - ELSEWHERE
    missing = {name for name in named if not any(file.endswith(f"/{name}") for file in there)}
    assert not missing


def without_code(text):
    return re.sub(r"`[^`\n]*`", "", BLOCK.sub("", text))

"""Hooks of mkdocs: pages that are generated, and pages of the site that lie outside docs/.

A line `<!-- generated: NAME -->` in a page is replaced by what `GENERATED[NAME]` returns: the command line comes from
click and the recipe keys from the JSON Schema, so neither is written down twice. Markdown files of `OUTSIDE` become
pages of the site. Links are written as GitHub follows them; here they are rewritten to the site's own addresses.
"""

import inspect
import json
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from peftlab.cli import cli
from peftlab.cli.help_layout import Argument, Command, Group, exit_codes
from peftlab.recipe import Recipe
from peftlab.recipe.extended_schema import section_classes
from peftlab.tuning.measured_schedules import MeasuredSchedule, load_table

ROOT = Path(__file__).parents[1]
OUTSIDE = ("benchmarks/results/*.md", "benchmarks/results/*.png", "recipes/data/README.md", "recipes/*.yaml")
GENERATED_LINE = re.compile(r"^<!-- generated: (.+) -->$", re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)#\s]+)(?=[)#])")
SECTIONS = {
    "base": "`base`: the frozen model",
    "task": "`task`: what goes in and what comes out",
    "method": "`method`: how the base is adapted",
    "data": "`data`: files and columns",
    "training": "`training`: names of Transformers' TrainingArguments",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add every decision to the navigation, under the page that lists them."""
    (listed,) = (entry["Decisions"] for entry in config.nav or [] if "Decisions" in entry)
    listed += [f"decisions/{page.name}" for page in _decision_pages()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of `OUTSIDE`, under their path in the repository."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            uri = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what is generated, and turn links of the repository into links of the site."""
    markdown = GENERATED_LINE.sub(lambda match: GENERATED[match[1]](), markdown)
    return LINK.sub(lambda match: _site_link(match[1], page.file.src_uri, files), markdown)


def _site_link(target: str, page_uri: str, files: Files) -> str:
    """The address inside the site of a file that `target` names inside the repository; else `target` itself."""
    page_path = page_uri if page_uri.startswith(("benchmarks/", "recipes/")) else f"docs/{page_uri}"
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page_path), target))
    uri = path.removeprefix("docs/")
    if files.get_file_from_path(uri) is None:
        return target  # mkdocs warns about it
    return posixpath.relpath(uri, posixpath.dirname(page_uri) or ".")


def command_line() -> str:
    """Every command with its usage, text, options and defaults, from click."""
    return "\n\n".join(_command(name, command, context) for name, command, context in _commands("peftlab", cli, None))


def exit_code_table() -> str:
    """Every exit code and its meaning, from the error classes."""
    return _table(("exit code", "meaning"), [(str(code), _cell(meaning)) for code, meaning in exit_codes().items()])


def _commands(
    name: str, command: click.Command, parent: click.Context | None
) -> Iterator[tuple[str, click.Command, click.Context]]:
    context = click.Context(command, info_name=name, parent=parent)
    yield context.command_path, command, context
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from _commands(child, found, context)


def _command(name: str, command: click.Command, context: click.Context) -> str:
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    text = _prose(inspect.cleandoc(command.help or ""))
    example = _block(command.example, "bash") if isinstance(command, Command | Group) else ""
    arguments = [
        (f"`{_cell(param.make_metavar(context))}`", _cell(param.description))
        for param in command.get_params(context)
        if isinstance(param, Argument)
    ]
    records = [record for parameter in command.get_params(context) if (record := parameter.get_help_record(context))]
    rows = [(f"`{_cell(option)}`", _cell(meaning)) for option, meaning in records if meaning]
    tables = [_subcommands(command, context), _table(("argument or option", "meaning"), [*arguments, *rows])]
    return "\n\n".join([f"## {name}", _block(usage), text, example, *tables])


def _subcommands(command: click.Command, context: click.Context) -> str:
    """A table of the commands of a group, with links; nothing for any other command."""
    children = command.commands if isinstance(command, click.Group) else {}
    rows = [(_link(f"{context.command_path} {name}"), _cell(_first_line(child))) for name, child in children.items()]
    return _table(("command", "what it does"), rows) if rows else ""


def _first_line(command: click.Command) -> str:
    return " ".join(inspect.cleandoc(command.help or "").partition("\n\n")[0].split())


def _link(command_path: str) -> str:
    return f"[`{command_path}`](#{command_path.replace(' ', '-')})"


def _prose(text: str) -> str:
    r"""The text of a command as Markdown; a paragraph that click keeps as it is (`\b`) becomes a block of text."""
    parts = [part.strip("\n") for part in re.split(r"\n\s*\n", text)]
    return "\n\n".join(_block(part[1:]) if part.startswith("\b") else part.replace("<", "&lt;") for part in parts)


def _block(text: str, language: str = "text") -> str:
    return f"```{language}\n{inspect.cleandoc(text)}\n```"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def recipe_keys() -> str:
    """Every key of a recipe with its default and meaning, from the JSON Schema."""
    schema = Recipe.model_json_schema()
    return "\n\n".join(
        f"## {title}\n\n{_section(schema['properties'][section], schema['$defs'])}"
        for section, title in SECTIONS.items()
    )


def _section(property_: dict[str, Any], definitions: dict[str, Any]) -> str:
    """One section of a recipe; where `type` chooses among several, one after the other."""
    references = [found.rpartition("/")[2] for found in _references(property_)]
    models = [definitions[name] for name in dict.fromkeys(references)]
    if len(models) == 1:
        return _fields(models[0], definitions)
    return "\n\n".join(f"{_head(model)}\n\n{_fields(model, definitions)}" for model in models)


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for key, inside in value.items():
            if key != "discriminator":
                yield from _references(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _references(inside)


def _head(model: dict[str, Any]) -> str:
    """Heading and first paragraph of one `type`, or of several that share their keys."""
    kind, text = model["properties"]["type"], model.get("description", "")
    types = kind.get("enum", [kind.get("const")])
    if len(types) == 1:
        return f"### `{types[0]}`\n\n{text}"
    return f"### {len(types)} more types\n\n{', '.join(f'`{name}`' for name in types)}: {text}"


def _fields(model: dict[str, Any], definitions: dict[str, Any]) -> str:
    rows = [
        (f"`{name}`", _default(model, name), _meaning(field, definitions))
        for name, field in model["properties"].items()
        if name != "type"
    ]
    return _table(("key", "default", "meaning"), rows) if rows else "No keys beside `type`."


def _default(model: dict[str, Any], name: str) -> str:
    if name in model.get("required", ()):
        return "required"
    default = model["properties"][name].get("default")
    if isinstance(default, dict) and default:
        return "see its keys"
    return _value(default)


def _meaning(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    """What a key means, and its values where they are listed; of a section inside a section, its keys as well."""
    choices = [value for option in [field, *field.get("anyOf", [])] for value in option.get("enum", [])]
    inner = [definitions[found.rpartition("/")[2]] for found in _references(field)]
    keys = [name for model in inner for name in model.get("properties", {})]
    parts = [field.get("description", ""), _listed("One of", choices), _listed("Keys:", keys)]
    return _cell(" ".join(part for part in parts if part))


def _listed(title: str, values: list[Any]) -> str:
    return f"{title} {', '.join(map(_value, values))}." if values else ""


def _value(value: Any) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def usual_learning_rates() -> str:
    """A table of the learning rates that methods take if a recipe has none, from the schema."""
    types_by_rate: dict[float, list[str]] = {}
    for name, section in section_classes(Recipe.model_fields["method"]).items():
        method = section.model_validate({"type": name})
        factor = f" (× {method.few_rows_factor:g})" if method.few_rows_factor != 1 else ""
        types_by_rate.setdefault(method.default_learning_rate, []).append(f"`{name}`{factor}")
    rows = [(f"{rate:g}", ", ".join(types)) for rate, types in sorted(types_by_rate.items(), reverse=True)]
    return _table(("learning rate", "methods"), rows)


def measured_schedules() -> str:
    """A table of all measured learning rates × steps, the best cell of each set, rows and method in bold."""
    best: dict[Any, float] = {}
    for cell in load_table():
        best[cell.grid] = max(cell.score, best.get(cell.grid, cell.score))
    rows = [
        (cell.where, f"`{cell.method}`", f"{cell.rate:g}", str(cell.num_steps), str(cell.seeds), _score(cell, best))
        for cell in load_table()
    ]
    return _table(("data", "method", "learning rate", "steps", "seeds", "score"), rows)


def _score(cell: MeasuredSchedule, best: dict[Any, float]) -> str:
    mark = "**" if cell.score == best[cell.grid] else ""
    return f"{cell.metric} {mark}{cell.score:.3f}{mark}"


def decisions() -> str:
    """A list of all decisions, the newest first."""
    return "\n".join(f"- [{_title(page)}]({page.name})" for page in reversed(_decision_pages()))


def _decision_pages() -> list[Path]:
    return sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))


def _title(page: Path) -> str:
    return page.read_text(encoding="utf8").partition("\n")[0].removeprefix("# ")


GENERATED: dict[str, Callable[[], str]] = {
    "command line": command_line,
    "exit codes": exit_code_table,
    "recipe keys": recipe_keys,
    "usual learning rates": usual_learning_rates,
    "measured schedules": measured_schedules,
    "decisions": decisions,
}

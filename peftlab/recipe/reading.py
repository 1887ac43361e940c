"""YAML file + overrides → Recipe, with every problem found in one go."""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from peftlab.errors import ErrorCollector, suggest
from peftlab.recipe.schema import Recipe
from peftlab.recipe.tasks import TEMPLATE_ENDING
from peftlab.recipe.validation import Key, RawRecipe, validate_recipe

DATA_FILES: tuple[Key, ...] = (("data", "train"), ("data", "validation"), ("data", "test"))
TEMPLATE: Key = ("task", "template")
MAYBE_FOLDERS: tuple[Key, ...] = (("base", "model"), ("data", "dataset"))
ADAPTERS: tuple[Key, ...] = (("method", "start_from"),)  # paths where there is a slash in them, else names in the store


def read_recipe(
    path: str | Path, overrides: Mapping[str, Any] | None = None, errors: ErrorCollector | None = None
) -> Recipe:
    """Read and check the recipe at `path`, changed by `overrides` (dotted key → value).

    Paths written in the recipe are relative to its folder; paths given in `overrides`, to the current folder.

    With `errors`, what is wrong is added there and the repaired recipe is returned so that checking can go on.

    Raises:
        RecipeError: what is wrong, all at once; with `errors`, only where too little is left to go on with.
    """
    if errors is None:
        with ErrorCollector() as errors:
            return read_recipe(path, overrides, errors)
    draft = _read_yaml(Path(path), errors)
    for key, value in (overrides or {}).items():
        _override(draft, key, value, errors)
    _resolve_paths(draft)
    return validate_recipe(draft, errors)


def parse_override(text: str) -> tuple[str, Any]:
    """`training.learning_rate=5e-4` → its key and its value, read as YAML.

    Raises:
        ValueError: `text` is not of the form key=value.
    """
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ValueError(f"'{text}' is not of the form key=value, as in training.learning_rate=5e-4")
    try:
        return key, YAML(typ="safe", pure=True).load(value)
    except YAMLError as error:
        raise ValueError(f"the value of '{text}' is not YAML: {str(error).splitlines()[0]}") from None


def recipe_yaml(recipe: Recipe, folder: str | Path) -> str:
    """The recipe with every default filled in, its paths relative to `folder`, where the text is meant to lie."""
    values = recipe.model_dump()
    for section, name in (*DATA_FILES, *MAYBE_FOLDERS, *ADAPTERS, TEMPLATE):
        value = values[section].get(name)
        if isinstance(value, str) and os.path.isabs(value):
            values[section][name] = os.path.relpath(value, folder)
    text = io.StringIO()
    yaml = YAML(typ="rt", pure=True)
    yaml.width = 120
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    yaml.dump(values, text)
    return text.getvalue()


def _read_yaml(file: Path, errors: ErrorCollector) -> RawRecipe:
    draft = RawRecipe(file)
    try:
        document = YAML(typ="rt", pure=True).load(file.read_text(encoding="utf8"))
    except FileNotFoundError:
        errors.add("no such recipe.", where=str(file), hint=_nearby_recipes(file))
    except (OSError, UnicodeDecodeError) as error:
        errors.add(f"cannot be read: {error}.", where=str(file))
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        errors.add(f"not valid YAML: {error.problem}.", where=f"{file}:{line}")
    except YAMLError as error:
        errors.add(f"not valid YAML: {str(error).splitlines()[0]}.", where=str(file))
    else:
        if isinstance(document, dict):
            errors.locations[""] = str(file)
            values = _plain(document, (), file, errors.locations)
            draft.values = {name: value for name, value in values.items() if value is not None}  # an empty section
        else:
            errors.add("a recipe is a mapping, with at least name, base, task and data.", where=str(file))
    errors.raise_if_any()
    return draft


def _nearby_recipes(file: Path) -> str:
    folder = file.parent if file.parent.is_dir() else Path("recipes")
    return suggest(str(file), [str(found) for found in folder.glob("*.yaml")], what="Available recipes")


def _plain(node: Any, key: Key, file: Path, places: dict[str, str]) -> Any:
    """Round-trip YAML nodes → plain Python values, noting the place of each key."""
    if isinstance(node, dict):
        plain = {}
        for name, value in node.items():
            inner = (*key, str(name))
            if name in (node.lc.data or {}):  # type: ignore[attr-defined]  # a key merged in by `<<` has no line
                places[".".join(inner)] = f"{file}:{node.lc.key(name)[0] + 1}"  # type: ignore[attr-defined]
            plain[str(name)] = _plain(value, inner, file, places)
        return plain
    if isinstance(node, list):
        return [_plain(value, key, file, places) for value in node]
    for kind in (bool, int, float, str):  # ruamel's scalars are subclasses that remember their spelling
        if isinstance(node, kind):
            return kind(node)
    return node


def _override(draft: RawRecipe, dotted: str, value: Any, errors: ErrorCollector) -> None:
    key: Key = tuple(dotted.split("."))
    typed = f"-o {dotted}={_yaml_line(value)}"
    section = draft.values
    for depth, part in enumerate(key[:-1], start=1):
        if part not in section:
            errors.locations[".".join(key[:depth])] = typed
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            errors.add(f"'{part}' is not a section.", where=typed, key=dotted)
            return
    section[key[-1]] = value
    errors.locations[dotted] = typed
    draft.overridden.add(key)


def _yaml_line(value: Any) -> str:
    """A value as one writes it after `-o key=`."""
    text = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.width = True, 10_000
    yaml.dump(value, text)
    return text.getvalue().removesuffix("...\n").strip()


def _resolve_paths(draft: RawRecipe) -> None:
    """Make paths absolute, so that nothing after this depends on where the recipe lies."""
    for key in (*DATA_FILES, *MAYBE_FOLDERS, *ADAPTERS, TEMPLATE):
        value = draft.get(key)
        if not isinstance(value, str) or (key in DATA_FILES and draft.get(("data", "dataset"))):
            continue
        typed = any(key[:depth] in draft.overridden for depth in range(1, len(key) + 1))
        folder = Path.cwd() if typed else draft.file.parent
        path = os.path.abspath(folder / Path(value).expanduser())
        is_file = key in DATA_FILES or (key == TEMPLATE and value.endswith(TEMPLATE_ENDING))
        is_folder = (key in ADAPTERS and "/" in value) or (key in MAYBE_FOLDERS and os.path.isdir(path))
        if is_file or is_folder:
            draft.parent(key)[key[-1]] = path

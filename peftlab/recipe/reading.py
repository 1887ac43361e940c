"""Read a recipe from a YAML file and overrides, and report all its errors at once."""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from peftlab.errors import ErrorCollector, suggest
from peftlab.recipe.schema import AUTO, Recipe
from peftlab.recipe.tasks import TEMPLATE_ENDING
from peftlab.recipe.validation import Key, RawRecipe, validate_recipe

VALIDATION: Key = ("data", "validation")
DATA_FILES: tuple[Key, ...] = (("data", "train"), VALIDATION, ("data", "test"))
TEMPLATE_FILE: Key = ("task", "template")
OPTIONAL_FOLDERS: tuple[Key, ...] = (("base", "model"), ("data", "dataset"))
ADAPTER_REFERENCES: tuple[Key, ...] = (
    ("method", "start_from"),
)  # a path if it contains a slash, else a name in the store


def read_recipe(
    path: str | Path, overrides: Mapping[str, Any] | None = None, errors: ErrorCollector | None = None
) -> Recipe:
    """Read and check the recipe at `path`, changed by `overrides` (dotted key → value).

    Paths in the recipe are relative to its folder, paths in `overrides` to the current folder.

    With `errors`, issues are added to it, and the repaired recipe is returned so that more can be checked.

    Raises:
        RecipeError: lists every issue; with `errors`, raised only if too little is left to check.
    """
    if errors is None:
        with ErrorCollector() as errors:
            return read_recipe(path, overrides, errors)
    raw = _read_yaml(Path(path), errors)
    for key, value in (overrides or {}).items():
        _override(raw, key, value, errors)
    _resolve_paths(raw)
    return validate_recipe(raw, errors)


def parse_override(text: str) -> tuple[str, Any]:
    """Split an override such as `training.learning_rate=5e-4` into its key and its value, which is parsed as YAML.

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
    """The recipe as YAML with all defaults filled in and with paths relative to `folder`."""
    values = recipe.model_dump()
    for section, name in (*DATA_FILES, *OPTIONAL_FOLDERS, *ADAPTER_REFERENCES, TEMPLATE_FILE):
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
    raw = RawRecipe(file)
    try:
        document = YAML(typ="rt", pure=True).load(file.read_text(encoding="utf8"))
    except FileNotFoundError:
        errors.add("no such recipe.", where=str(file), hint=_suggest_recipes(file))
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
            values = _to_plain_values(document, (), file, errors.locations)
            raw.values = {name: value for name, value in values.items() if value is not None}  # an empty section
        else:
            errors.add("a recipe is a mapping, with at least name, base, task and data.", where=str(file))
    errors.raise_if_any()
    return raw


def _suggest_recipes(file: Path) -> str:
    folder = file.parent if file.parent.is_dir() else Path("recipes")
    return suggest(str(file), [str(found) for found in folder.glob("*.yaml")], what="Available recipes")


def _to_plain_values(node: Any, key: Key, file: Path, locations: dict[str, str]) -> Any:
    """Convert round-trip YAML nodes to plain Python values, and record where each key is."""
    if isinstance(node, dict):
        plain = {}
        for name, value in node.items():
            inner = (*key, str(name))
            if name in (node.lc.data or {}):  # type: ignore[attr-defined]  # a key merged in by `<<` has no line
                locations[".".join(inner)] = f"{file}:{node.lc.key(name)[0] + 1}"  # type: ignore[attr-defined]
            plain[str(name)] = _to_plain_values(value, inner, file, locations)
        return plain
    if isinstance(node, list):
        return [_to_plain_values(value, key, file, locations) for value in node]
    for scalar_type in (bool, int, float, str):  # ruamel's scalars are subclasses that keep their spelling
        if isinstance(node, scalar_type):
            return scalar_type(node)
    return node


def _override(raw: RawRecipe, dotted_key: str, value: Any, errors: ErrorCollector) -> None:
    key: Key = tuple(dotted_key.split("."))
    override_text = f"-o {dotted_key}={_yaml_line(value)}"
    section = raw.values
    for depth, part in enumerate(key[:-1], start=1):
        if part not in section:
            errors.locations[".".join(key[:depth])] = override_text
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            errors.add(f"'{part}' is not a section.", where=override_text, key=dotted_key)
            return
    section[key[-1]] = value
    errors.locations[dotted_key] = override_text
    raw.overridden.add(key)


def _yaml_line(value: Any) -> str:
    """The value as one line of YAML, as after `-o key=`."""
    text = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.width = True, 10_000
    yaml.dump(value, text)
    return text.getvalue().removesuffix("...\n").strip()


def _resolve_paths(raw: RawRecipe) -> None:
    """Make all paths absolute."""
    for key in (*DATA_FILES, *OPTIONAL_FOLDERS, *ADAPTER_REFERENCES, TEMPLATE_FILE):
        value = raw.get(key)
        if not isinstance(value, str) or (key in DATA_FILES and raw.get(("data", "dataset"))):
            continue
        if key == VALIDATION and value == AUTO:
            continue
        override_text = any(key[:depth] in raw.overridden for depth in range(1, len(key) + 1))
        folder = Path.cwd() if override_text else raw.file.parent
        path = os.path.abspath(folder / Path(value).expanduser())
        is_file = key in DATA_FILES or (key == TEMPLATE_FILE and value.endswith(TEMPLATE_ENDING))
        is_folder = (key in ADAPTER_REFERENCES and "/" in value) or (key in OPTIONAL_FOLDERS and os.path.isdir(path))
        if is_file or is_folder:
            raw.parent(key)[key[-1]] = path

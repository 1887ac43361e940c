"""YAML file + overrides → Recipe, with every problem found in one go.

A wrong value does not end the reading: it is noted, then repaired (a typo by its nearest name, anything else by the
default), so that what comes after it is checked as well. The repaired recipe is never run: `Problems` raises first.
"""

import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from peftlab.errors import Problems, RecipeError, nearest, suggest
from peftlab.recipe.schema import Recipe

Key = tuple[str, ...]

DATA_FILES: tuple[Key, ...] = (("data", "train"), ("data", "validation"), ("data", "test"))
MAYBE_FOLDERS: tuple[Key, ...] = (("base", "model"), ("data", "dataset"))


@dataclass
class Draft:
    """A recipe on its way in: plain values, and the keys that overrides set."""

    file: Path
    values: dict[str, Any] = field(default_factory=dict)
    overridden: set[Key] = field(default_factory=set)

    def parent(self, key: Key) -> Any:
        """The mapping or list that holds the last part of `key`."""
        node: Any = self.values
        for part in key[:-1]:
            node = node[part]
        return node

    def get(self, key: Key) -> Any:
        """The value at `key`, or None."""
        node: Any = self.values
        for part in key:
            if not isinstance(node, dict) or part not in node:
                return None
            node = node[part]
        return node


def read_recipe(
    path: str | Path, overrides: Mapping[str, Any] | None = None, problems: Problems | None = None
) -> Recipe:
    """Read and check the recipe at `path`, changed by `overrides` (dotted key → value).

    Paths written in the recipe are relative to its folder; paths given in `overrides`, to the current folder.

    With `problems`, what is wrong is added there and the repaired recipe is returned so that checking can go on.

    Raises:
        RecipeError: what is wrong, all at once; with `problems`, only where too little is left to go on with.
    """
    if problems is None:
        with Problems() as problems:
            return read_recipe(path, overrides, problems)
    draft = _read_yaml(Path(path), problems)
    for key, value in (overrides or {}).items():
        _override(draft, key, value, problems)
    _resolve_paths(draft)
    return _validate(draft, problems)


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
    for section, name in (*DATA_FILES, *MAYBE_FOLDERS):
        value = values[section][name]
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


def _read_yaml(file: Path, problems: Problems) -> Draft:
    draft = Draft(file)
    try:
        document = YAML(typ="rt", pure=True).load(file.read_text(encoding="utf8"))
    except FileNotFoundError:
        problems.add("no such recipe.", where=str(file), hint=_nearby_recipes(file))
    except (OSError, UnicodeDecodeError) as error:
        problems.add(f"cannot be read: {error}.", where=str(file))
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problems.add(f"not valid YAML: {error.problem}.", where=f"{file}:{line}")
    except YAMLError as error:
        problems.add(f"not valid YAML: {str(error).splitlines()[0]}.", where=str(file))
    else:
        if isinstance(document, dict):
            problems.places[""] = str(file)
            draft.values = _plain(document, (), file, problems.places)
        else:
            problems.add("a recipe is a mapping, with at least name, base, task and data.", where=str(file))
    problems.stop()
    return draft


def _nearby_recipes(file: Path) -> str:
    folder = file.parent if file.parent.is_dir() else Path("recipes")
    return suggest(str(file), [str(found) for found in folder.glob("*.yaml")], what="Recipes there")


def _plain(node: Any, key: Key, file: Path, places: dict[str, str]) -> Any:
    """Round-trip YAML nodes → plain Python values, noting the place of each key."""
    if isinstance(node, dict):
        plain = {}
        for name, value in node.items():
            inner = (*key, str(name))
            places[".".join(inner)] = f"{file}:{node.lc.key(name)[0] + 1}"  # type: ignore[attr-defined]
            plain[str(name)] = _plain(value, inner, file, places)
        return plain
    if isinstance(node, list):
        return [_plain(value, key, file, places) for value in node]
    for kind in (bool, int, float, str):  # ruamel's scalars are subclasses that remember their spelling
        if isinstance(node, kind):
            return kind(node)
    return node


def _override(draft: Draft, dotted: str, value: Any, problems: Problems) -> None:
    key: Key = tuple(dotted.split("."))
    section = draft.values
    for part in key[:-1]:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            problems.add(f"'{part}' is not a section.", where=f"-o {dotted}={value}", key=dotted)
            return
    section[key[-1]] = value
    problems.places[dotted] = f"-o {dotted}={value}"
    draft.overridden.add(key)


def _resolve_paths(draft: Draft) -> None:
    """Make paths absolute, so that nothing after this depends on where the recipe lies."""
    for key in (*DATA_FILES, *MAYBE_FOLDERS):
        value = draft.get(key)
        if not isinstance(value, str) or (key in DATA_FILES and draft.get(("data", "dataset"))):
            continue
        folder = Path.cwd() if key in draft.overridden else draft.file.parent
        path = os.path.abspath(folder / Path(value).expanduser())
        if key in DATA_FILES or os.path.isdir(path):
            draft.parent(key)[key[-1]] = path


def _validate(draft: Draft, problems: Problems) -> Recipe:
    """Check against the schema; note and repair until it fits or a required key is missing."""
    while True:
        try:
            return Recipe.model_validate(draft.values)
        except ValidationError as error:
            faults = _faults(error, draft.values)
        for key, fault in sorted(faults.items(), key=lambda item: _line(problems.place(".".join(item[0])))):
            _note_and_repair(draft, key, fault, problems)
        if any(fault["type"] == "missing" for fault in faults.values()):
            raise RecipeError(problems.found)


def _line(place: str) -> int:
    tail = place.rpartition(":")[2]
    return int(tail) if tail.isdigit() else 0


def _faults(error: ValidationError, values: dict[str, Any]) -> dict[Key, dict[str, Any]]:
    """Pydantic's errors by recipe key; the branches of a union become one fault."""
    faults: dict[Key, dict[str, Any]] = {}
    for found in error.errors():
        loc = tuple(map(str, found["loc"]))
        key = loc if found["type"] == "missing" else _written_part(loc, values)
        message = found["msg"].removeprefix("Input ").removeprefix("Value ")
        if key not in faults:
            faults[key] = {"type": found["type"], "message": message, "input": found["input"], **found.get("ctx", {})}
        elif message not in faults[key]["message"]:
            faults[key]["message"] += f", or {message.removeprefix('should be ')}"
    return faults


def _written_part(loc: Key, values: Any) -> Key:
    """Pydantic adds names of union branches and list positions to a location; keep the key the user wrote."""
    key: Key = ()
    for part in loc:
        if not isinstance(values, dict) or part not in values:
            break
        key, values = (*key, part), values[part]
    return key


def _note_and_repair(draft: Draft, key: Key, fault: dict[str, Any], problems: Problems) -> None:
    dotted = ".".join(key)
    if fault["type"] == "missing":
        problems.add("missing, and it has no default.", key=dotted)
        return
    section, name = draft.parent(key), key[-1]
    if fault["type"] == "extra_forbidden":
        known = _keys_of(key[:-1])
        problems.add("unknown key.", key=dotted, hint=suggest(name, known, what="Keys here"))
        value = section.pop(name)
        if meant := nearest(name, known - section.keys()):
            section[meant] = value
            problems.places[".".join((*key[:-1], meant))] = problems.place(dotted)
    elif fault["type"] == "literal_error" and isinstance(fault["input"], str):
        known = set(re.findall(r"'([^']*)'", fault["expected"]))
        problems.add(f"unknown {name} '{fault['input']}'.", key=dotted, hint=suggest(fault["input"], known))
        _put_or_drop(section, name, nearest(fault["input"], known) or min(known))
    else:
        problems.add(f"{fault['message']}, not {fault['input']!r}.", key=dotted)
        _put_or_drop(section, name, _STAND_INS.get(key))


# Required keys have no default to fall back on while the rest of a wrong recipe is checked.
_STAND_INS: dict[Key, Any] = {
    ("name",): "unnamed",
    ("base", "model"): "unnamed",
    ("task", "type"): "token-classification",
}


def _put_or_drop(section: Any, part: str, value: Any) -> None:
    if value is not None:
        section[part] = value
    else:
        del section[part]


def _keys_of(key: Key) -> set[str]:
    """The keys that the schema knows in the section at `key`."""
    section: Any = Recipe  # every section is one class of its own, so a key leads straight to it
    for part in key:
        section = section.model_fields[part].annotation
    return set(section.model_fields)

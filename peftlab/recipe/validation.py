"""Validate plain values against the schema, and repair wrong ones so that the rest can be checked too.

A wrong value does not end the check. It is recorded, then repaired: a typo by the closest name, anything else by its
default or a placeholder. A repaired recipe is never run, because `ErrorCollector` raises first.
"""

import copy
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from peftlab.errors import ErrorCollector, PluginError, RecipeError, nearest, suggest
from peftlab.recipe.compatibility import check_compatibility
from peftlab.recipe.extended_schema import extended_schema, plugin_types, section_classes
from peftlab.recipe.peft_methods import UNSUPPORTED_PEFT_METHODS
from peftlab.recipe.schema import Recipe

Key = tuple[str, ...]

# Required keys have no default that could replace a wrong value.
PLACEHOLDERS: dict[Key, Any] = {
    ("name",): "unnamed",
    ("base",): {"model": "unnamed"},
    ("base", "model"): "unnamed",
    ("task",): {"type": "token-classification"},
    ("task", "type"): "token-classification",
}


@dataclass
class RawRecipe:
    """A recipe before validation: plain values, and the keys that overrides set."""

    file: Path
    values: dict[str, Any] = field(default_factory=dict)
    overridden: set[Key] = field(default_factory=set)

    def parent(self, key: Key) -> Any:
        """The section that contains the last part of `key`."""
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


@dataclass
class SchemaError:
    """An error of pydantic at the key that the user wrote; the errors of a union's branches are merged."""

    key: Key
    error_type: str
    message: str
    value: Any
    expected: str

    @property
    def dotted_key(self) -> str:
        """The key as the user writes it, as in `training.seed`."""
        return ".".join(self.key)


def validate_recipe(raw: RawRecipe, errors: ErrorCollector) -> Recipe:
    """Validate `raw`, record what is wrong with it, and return the repaired recipe.

    Raises:
        RecipeError: a required key is missing and has no placeholder.
    """
    num_before = len(errors.issues)
    while True:
        _sort_by_line(errors, num_before)
        schema = _schema_for(raw, errors)
        try:
            recipe = schema.model_validate(raw.values)
        except ValidationError as error:
            _fix_all(_collect_schema_errors(error, raw.values, schema), raw, errors, schema)
        else:
            check_compatibility(recipe, errors)
            _sort_by_line(errors, num_before)
            return recipe


def _fix_all(found: list[SchemaError], raw: RawRecipe, errors: ErrorCollector, schema: type[Recipe]) -> None:
    for error in sorted(found, key=lambda error: _line(errors.location(error.dotted_key))):
        if error.error_type == "extra_forbidden":
            _fix_unknown_key(raw, error, errors, schema)
        elif error.error_type == "literal_error" and isinstance(error.value, str):
            _fix_unknown_value(raw, error, errors)
        elif error.error_type != "missing":
            errors.add(f"{error.message}, not {error.value!r}.", key=error.dotted_key)
            _set_placeholder(raw, error.key, errors)
    for error in found:
        if error.error_type == "missing" and raw.get(error.key) is None:  # a fixed typo may have been this key
            _fix_missing_key(raw, error, errors)


def _fix_missing_key(raw: RawRecipe, error: SchemaError, errors: ErrorCollector) -> None:
    if _fix_missing_type(raw, error, errors):
        return
    if not errors.has_error_at(error.dotted_key):  # a wrong value that was removed is not missing
        errors.add("missing, and it has no default.", key=error.dotted_key)
    if error.key not in PLACEHOLDERS:
        raise RecipeError(errors.issues)
    _set_placeholder(raw, error.key, errors)


def _schema_for(raw: RawRecipe, errors: ErrorCollector) -> type[Recipe]:
    """`Recipe`, extended by the types that `raw` names and that other packages provide."""
    types: dict[str, list[str]] = {}
    for section, placeholder in (("task", "token-classification"), ("method", "lora")):
        name = raw.get((section, "type"))
        if not isinstance(name, str) or name in section_classes(Recipe.model_fields[section]):
            continue
        try:
            types[section] = [name] if name in plugin_types(section) else []
            extended_schema(types)
        except PluginError as error:
            del types[section]
            errors.add(f"{error}", key=f"{section}.type")
            errors.placeholders.add(f"{section}.type")
            raw.values[section] = {"type": placeholder}
    return extended_schema(types)


def _sort_by_line(errors: ErrorCollector, num_before: int) -> None:
    errors.issues[num_before:] = sorted(errors.issues[num_before:], key=lambda issue: _line(issue.where))


def _collect_schema_errors(error: ValidationError, values: dict[str, Any], schema: type[Recipe]) -> list[SchemaError]:
    schema_errors: dict[Key, SchemaError] = {}
    for found in error.errors():
        found = _normalize_union_error(found)
        loc = _strip_union_branch(tuple(map(str, found["loc"])), schema)
        key = loc if found["type"] == "missing" else _strip_schema_parts(loc, values)
        message = found["msg"].removeprefix("Input ").removeprefix("Value error, ").removeprefix("Value ")
        if key not in schema_errors:
            expected = str(found.get("ctx", {}).get("expected", ""))
            schema_errors[key] = SchemaError(key, found["type"], message, found["input"], expected)
        elif message not in schema_errors[key].message:
            schema_errors[key].message += f", or {message.removeprefix('should be ')}"
    return list(schema_errors.values())


def _normalize_union_error(found: Any) -> Any:
    """Move an error about the type of a section to the key `type` of that section."""
    loc = (*found["loc"], "type")
    if found["type"] == "union_tag_not_found":
        return {**found, "type": "missing", "loc": loc}
    if found["type"] == "union_tag_invalid":
        context = found["ctx"]
        expected = {"expected": context["expected_tags"]}
        return {**found, "type": "literal_error", "loc": loc, "input": context["tag"], "ctx": expected}
    return found


def _strip_union_branch(loc: Key, schema: type[Recipe]) -> Key:
    """Remove the type name that pydantic puts after the name of a union section."""
    field = schema.model_fields.get(loc[0]) if len(loc) > 1 else None
    return (loc[0], *loc[2:]) if field is not None and loc[1] in section_classes(field) else loc


def _strip_schema_parts(loc: Key, values: Any) -> Key:
    """Keep the part of a location that the user wrote: pydantic appends union branches and list positions."""
    key: Key = ()
    for part in loc:
        if not isinstance(values, dict) or part not in values:
            break
        key, values = (*key, part), values[part]
    return key


def _line(place: str) -> int:
    tail = place.rpartition(":")[2]
    return int(tail) if tail.isdigit() else 0


def _fix_unknown_key(raw: RawRecipe, error: SchemaError, errors: ErrorCollector, schema: type[Recipe]) -> None:
    *parents, name = error.key
    section = raw.parent(error.key)
    known = _known_keys(tuple(parents), raw, schema)
    hint = suggest(name, known, what="Keys here")
    if (*parents, "type") in raw.overridden and error.key not in raw.overridden:
        replaced = f"-o '{parents[0]}={{type: {section['type']}}}'"
        hint += f" If it belongs to another type, replace the whole section: {replaced}."
    errors.add("unknown key.", key=error.dotted_key, hint=hint)
    value = section.pop(name)
    if closest := nearest(name, known - section.keys()):
        section[closest] = value
        errors.add_alias(error.dotted_key, ".".join((*parents, closest)))


def _fix_missing_type(raw: RawRecipe, error: SchemaError, errors: ErrorCollector) -> bool:
    """Repair a missing or misspelled `type`, which pydantic reports as missing; return whether `error` is about it."""
    if error.key[-1] != "type":
        return False
    section = raw.parent(error.key)
    if typo := nearest("type", section):
        misspelled_key = ".".join((*error.key[:-1], typo))
        errors.add("unknown key.", key=misspelled_key, hint=suggest(typo, ["type"], what="A key here"))
        section["type"] = section.pop(typo)
        errors.add_alias(misspelled_key, error.dotted_key)
    else:
        errors.add("missing, and it has no default.", key=error.dotted_key)
        section.clear()  # its other keys belong to an unknown type
        _set_placeholder(raw, error.key, errors)
    return True


def _fix_unknown_value(raw: RawRecipe, error: SchemaError, errors: ErrorCollector) -> None:
    known = re.findall(r"'([^']*)'", error.expected)
    if error.key[1:] == ("type",):
        known += plugin_types(error.key[0])
    message, hint = f"unknown {error.key[-1]} '{error.value}'.", suggest(error.value, known)
    section, closest = raw.parent(error.key), nearest(error.value, known)
    if error.dotted_key == "method.type" and (reason := UNSUPPORTED_PEFT_METHODS.get(error.value)):
        message, hint = f"'{error.value}' is not supported: {reason}.", "Take lora, or another method."
        closest = None
    errors.add(message, key=error.dotted_key, hint=hint)
    if error.key[-1] == "type" and not closest:
        section.clear()  # its other keys belong to an unknown type
        errors.placeholders.add(error.dotted_key)
    section[error.key[-1]] = closest or known[0]


def _set_placeholder(raw: RawRecipe, key: Key, errors: ErrorCollector) -> None:
    """Set the placeholder for `key`, or remove the key so that its default applies."""
    section = raw.parent(key)
    if key in PLACEHOLDERS:
        section[key[-1]] = copy.deepcopy(PLACEHOLDERS[key])
        errors.placeholders.add(".".join(key))
    else:
        section.pop(key[-1], None)


def _known_keys(key: Key, raw: RawRecipe, schema: type[Recipe]) -> set[str]:
    """The keys that the schema allows in the section at `key`, for its type."""
    if not key:
        return set(schema.model_fields)
    field = schema.model_fields[key[0]]
    classes = section_classes(field)
    section: Any = classes[raw.get((key[0], "type")) or field.default.type] if classes else field.annotation
    for inner in key[1:]:
        section = section.model_fields[inner].annotation
    return set(section.model_fields)

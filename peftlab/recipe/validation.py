"""Plain values → Recipe: held against the schema, and repaired so that the rest can be checked as well.

A wrong value does not end the check: it is noted, then repaired (a typo by its nearest name, anything else by its
default or a stand-in). The repaired recipe is never run: `ErrorCollector` raises first.
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

# Required keys have no default to fall back on while the rest of a wrong recipe is checked.
STAND_INS: dict[Key, Any] = {
    ("name",): "unnamed",
    ("base",): {"model": "unnamed"},
    ("base", "model"): "unnamed",
    ("task",): {"type": "token-classification"},
    ("task", "type"): "token-classification",
}


@dataclass
class RawRecipe:
    """A recipe on its way in: plain values, and the keys that overrides set."""

    file: Path
    values: dict[str, Any] = field(default_factory=dict)
    overridden: set[Key] = field(default_factory=set)

    def parent(self, key: Key) -> Any:
        """The mapping that holds the last part of `key`."""
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
class Fault:
    """One of pydantic's complaints, by the key the user wrote; the branches of a union make one fault together."""

    key: Key
    kind: str
    message: str
    value: Any
    expected: str

    @property
    def dotted(self) -> str:
        """The key as users write it."""
        return ".".join(self.key)


def validate_recipe(draft: RawRecipe, errors: ErrorCollector) -> Recipe:
    """The recipe that `draft` holds, repaired where it is wrong.

    Raises:
        RecipeError: a required key is missing that nothing can stand in for.
    """
    told_before = len(errors.issues)
    while True:
        _sort_by_line(errors, told_before)
        schema = _schema_for(draft, errors)
        try:
            recipe = schema.model_validate(draft.values)
        except ValidationError as error:
            faults = _faults(error, draft.values, schema)
        else:
            check_compatibility(recipe, errors)
            _sort_by_line(errors, told_before)
            return recipe
        for fault in sorted(faults, key=lambda fault: _line(errors.location(fault.dotted))):
            if fault.kind == "extra_forbidden":
                _repair_unknown_key(draft, fault, errors, schema)
            elif fault.kind == "literal_error" and isinstance(fault.value, str):
                _repair_unknown_name(draft, fault, errors)
            elif fault.kind != "missing":
                errors.add(f"{fault.message}, not {fault.value!r}.", key=fault.dotted)
                _put_stand_in(draft, fault.key, errors)
        for fault in faults:
            if fault.kind == "missing" and draft.get(fault.key) is None:  # a typo may have been it
                if _repair_type_key(draft, fault, errors):
                    continue
                if not errors.has_error_at(fault.dotted):  # a wrong value taken out for the check is not missing
                    errors.add("missing, and it has no default.", key=fault.dotted)
                if fault.key not in STAND_INS:
                    raise RecipeError(errors.issues)
                _put_stand_in(draft, fault.key, errors)


def _schema_for(draft: RawRecipe, errors: ErrorCollector) -> type[Recipe]:
    """`Recipe`, extended by the types that the draft names and another package brings."""
    types: dict[str, list[str]] = {}
    for section, stand_in in (("task", "token-classification"), ("method", "lora")):
        name = draft.get((section, "type"))
        if not isinstance(name, str) or name in section_classes(Recipe.model_fields[section]):
            continue
        try:
            types[section] = [name] if name in plugin_types(section) else []
            extended_schema(types)
        except PluginError as error:
            del types[section]
            errors.add(f"{error}", key=f"{section}.type")
            errors.placeholders.add(f"{section}.type")
            draft.values[section] = {"type": stand_in}
    return extended_schema(types)


def _sort_by_line(errors: ErrorCollector, told_before: int) -> None:
    errors.issues[told_before:] = sorted(errors.issues[told_before:], key=lambda issue: _line(issue.where))


def _faults(error: ValidationError, values: dict[str, Any], schema: type[Recipe]) -> list[Fault]:
    faults: dict[Key, Fault] = {}
    for found in error.errors():
        found = _about_the_type(found)
        loc = _without_branch(tuple(map(str, found["loc"])), schema)
        key = loc if found["type"] == "missing" else _written_part(loc, values)
        message = found["msg"].removeprefix("Input ").removeprefix("Value error, ").removeprefix("Value ")
        if key not in faults:
            expected = str(found.get("ctx", {}).get("expected", ""))
            faults[key] = Fault(key, found["type"], message, found["input"], expected)
        elif message not in faults[key].message:
            faults[key].message += f", or {message.removeprefix('should be ')}"
    return list(faults.values())


def _about_the_type(found: Any) -> Any:
    """A section that is a union goes by its `type`: say of that key what pydantic says of the section."""
    loc = (*found["loc"], "type")
    if found["type"] == "union_tag_not_found":
        return {**found, "type": "missing", "loc": loc}
    if found["type"] == "union_tag_invalid":
        context = found["ctx"]
        expected = {"expected": context["expected_tags"]}
        return {**found, "type": "literal_error", "loc": loc, "input": context["tag"], "ctx": expected}
    return found


def _without_branch(loc: Key, schema: type[Recipe]) -> Key:
    """A location inside a union by `type` has that type's name after the section's."""
    field = schema.model_fields.get(loc[0]) if len(loc) > 1 else None
    return (loc[0], *loc[2:]) if field is not None and loc[1] in section_classes(field) else loc


def _written_part(loc: Key, values: Any) -> Key:
    """Pydantic adds names of union branches and list positions to a location; keep the key the user wrote."""
    key: Key = ()
    for part in loc:
        if not isinstance(values, dict) or part not in values:
            break
        key, values = (*key, part), values[part]
    return key


def _line(place: str) -> int:
    tail = place.rpartition(":")[2]
    return int(tail) if tail.isdigit() else 0


def _repair_unknown_key(draft: RawRecipe, fault: Fault, errors: ErrorCollector, schema: type[Recipe]) -> None:
    *around, name = fault.key
    section = draft.parent(fault.key)
    known = _keys_of(tuple(around), draft, schema)
    hint = suggest(name, known, what="Keys here")
    if (*around, "type") in draft.overridden and fault.key not in draft.overridden:
        kind = section["type"]
        hint += (
            f" If it goes with another type: -o '{around[0]}={{type: {kind}}}' takes the place of the whole section."
        )
    errors.add("unknown key.", key=fault.dotted, hint=hint)
    value = section.pop(name)
    if meant := nearest(name, known - section.keys()):
        section[meant] = value
        errors.add_alias(fault.dotted, ".".join((*around, meant)))


def _repair_type_key(draft: RawRecipe, fault: Fault, errors: ErrorCollector) -> bool:
    """A section that is a union says nothing of a misspelled `type` but that there is none."""
    if fault.key[-1] != "type":
        return False
    section = draft.parent(fault.key)
    if typo := nearest("type", section):
        written = ".".join((*fault.key[:-1], typo))
        errors.add("unknown key.", key=written, hint=suggest(typo, ["type"], what="A key here"))
        section["type"] = section.pop(typo)
        errors.add_alias(written, fault.dotted)
    else:
        errors.add("missing, and it has no default.", key=fault.dotted)
        section.clear()  # its other keys belong to a type that nobody knows
        _put_stand_in(draft, fault.key, errors)
    return True


def _repair_unknown_name(draft: RawRecipe, fault: Fault, errors: ErrorCollector) -> None:
    known = re.findall(r"'([^']*)'", fault.expected)
    if fault.key[1:] == ("type",):
        known += plugin_types(fault.key[0])
    message, hint = f"unknown {fault.key[-1]} '{fault.value}'.", suggest(fault.value, known)
    section, meant = draft.parent(fault.key), nearest(fault.value, known)
    if fault.dotted == "method.type" and (reason := UNSUPPORTED_PEFT_METHODS.get(fault.value)):
        message, hint = f"'{fault.value}' cannot be taken: {reason}.", "Take lora, or another method."
        meant = None
    errors.add(message, key=fault.dotted, hint=hint)
    if fault.key[-1] == "type" and not meant:
        section.clear()  # its other keys belong to a type that nobody knows
        errors.placeholders.add(fault.dotted)
    section[fault.key[-1]] = meant or known[0]


def _put_stand_in(draft: RawRecipe, key: Key, errors: ErrorCollector) -> None:
    """What may stand at `key` while the rest is checked; where there is nothing, the default does."""
    section = draft.parent(key)
    if key in STAND_INS:
        section[key[-1]] = copy.deepcopy(STAND_INS[key])
        errors.placeholders.add(".".join(key))
    else:
        section.pop(key[-1], None)


def _keys_of(key: Key, draft: RawRecipe, schema: type[Recipe]) -> set[str]:
    """The keys that the schema knows in the section at `key`, by its type where it has several."""
    if not key:
        return set(schema.model_fields)
    field = schema.model_fields[key[0]]
    classes = section_classes(field)
    section: Any = classes[draft.get((key[0], "type")) or field.default.type] if classes else field.annotation
    for inner in key[1:]:
        section = section.model_fields[inner].annotation
    return set(section.model_fields)

"""Any other method of PEFT that changes Linear layers, by its name there: fields are those of its configuration class.

What they are and where they come from: https://huggingface.co/docs/peft. The method matrix tries each.
"""

import math
from dataclasses import fields
from typing import Any, get_type_hints

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from pydantic import TypeAdapter, ValidationError

from peftlab.base import Base
from peftlab.errors import ErrorCollector, reraise_as_recipe_error, suggest
from peftlab.methods.target_modules import resolve_targets, widths
from peftlab.recipe import OtherMethod

OURS = {"target_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias"}
"""Fields that peftlab fills in; `bias` would train what the files of an adapter do not all hold."""
DIVIDES_WIDTHS = {"c3a": "block_size", "road": "group_size", "vblora": "vector_length"}
"""Method → its field that must divide the widths of every layer it adapts, as PEFT's default does on wide models."""


def other_config(base: Base, section: OtherMethod, **shared: Any) -> PeftConfig:
    """The PEFT configuration, aimed at full module names; `shared` is what every method has.

    A field that must divide the widths of the layers is, unless the recipe sets it, the largest part of PEFT's default
    that does.

    Raises:
        RecipeError: a field is not the method's, or holds what it cannot; the base has no such module or layer.
    """
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(section.type.upper())]
    with ErrorCollector() as errors:
        _check_fields(section.type, section.extras, _types(config), errors)
    targets = resolve_targets(base, section)
    values = {**_dividing_widths(base, section.type, targets, config), **section.extras}
    with reraise_as_recipe_error(f"PEFT refuses these fields of '{section.type}'", TypeError, ValueError, key="method"):
        return config(target_modules=targets, **values, **shared)


def _dividing_widths(base: Base, method: str, targets: list[str], config: type[PeftConfig]) -> dict[str, int]:
    if method not in DIVIDES_WIDTHS:
        return {}
    name = DIVIDES_WIDTHS[method]
    return {name: math.gcd(getattr(config, name), *(width for target in targets for width in widths(base, target)))}


def _types(config: type[PeftConfig]) -> dict[str, Any]:
    """The method's own fields, with their types."""
    shared = {field.name for field in fields(PeftConfig)}
    hints = get_type_hints(config)
    return {field.name: hints[field.name] for field in fields(config) if field.name not in shared | OURS}


def _check_fields(method: str, values: dict[str, Any], types: dict[str, Any], errors: ErrorCollector) -> None:
    for name, value in values.items():
        if name not in types:
            hint = suggest(name, types, what=f"Fields of {method}")
            errors.add("unknown key.", key=f"method.{name}", hint=hint)
            continue
        try:
            TypeAdapter(types[name]).validate_python(value, strict=True)
        except ValidationError as error:
            told = error.errors()[0]["msg"].removeprefix("Input ")
            errors.add(f"{told}, not {value!r}.", key=f"method.{name}")

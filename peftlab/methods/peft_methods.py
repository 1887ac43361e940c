"""Other PEFT methods that change Linear layers, under the names of their types and fields in PEFT.

Descriptions and papers: https://huggingface.co/docs/peft. The method matrix tests each of them.
"""

import math
from dataclasses import fields
from typing import Any, get_type_hints

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from pydantic import TypeAdapter, ValidationError

from peftlab.base import Base
from peftlab.errors import ErrorCollector, reraise_as_recipe_error, suggest
from peftlab.methods.target_modules import in_out_features, resolve_targets
from peftlab.recipe import PeftMethod
from peftlab.tasks import Task

FIELDS_FILLED_IN = {"target_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias"}
"""Fields that a recipe cannot set here; `bias` would train parameters that an adapter's files do not contain."""


def peft_method_config(base: Base, section: PeftMethod, task: Task) -> PeftConfig:
    """PEFT's configuration with full module names.

    Some fields must divide the widths of the layers. If the recipe does not set such a field, it becomes the largest
    divisor of PEFT's default that divides them.

    Raises:
        RecipeError: the method has no such field, a value is wrong, or the base has no such module or layer.
    """
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(section.type.upper())]
    with ErrorCollector() as errors:
        _check_fields(section.type, section.extras, _field_types(config), errors)
    targets = resolve_targets(base, section)
    values = {**_width_divisor(base, section, targets, config), **section.extras}
    with reraise_as_recipe_error(f"PEFT refuses these fields of '{section.type}'", TypeError, ValueError, key="method"):
        return config(target_modules=targets, **values)


def _width_divisor(base: Base, section: PeftMethod, targets: list[str], config: type[PeftConfig]) -> dict[str, int]:
    name = section.info_of(section.type).width_divisor
    if not name:
        return {}
    widths = (width for target in targets for width in in_out_features(base, target))
    return {name: math.gcd(getattr(config, name), *widths)}


def _field_types(config: type[PeftConfig]) -> dict[str, Any]:
    """The method's own fields, with their types."""
    shared = {field.name for field in fields(PeftConfig)}
    hints = get_type_hints(config)
    return {field.name: hints[field.name] for field in fields(config) if field.name not in shared | FIELDS_FILLED_IN}


def _check_fields(method: str, values: dict[str, Any], types: dict[str, Any], errors: ErrorCollector) -> None:
    for name, value in values.items():
        if name not in types:
            hint = suggest(name, types, what=f"Fields of {method}")
            errors.add("unknown key.", key=f"method.{name}", hint=hint)
            continue
        try:
            TypeAdapter(types[name]).validate_python(value, strict=True)
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Input ")
            errors.add(f"{message}, not {value!r}.", key=f"method.{name}")

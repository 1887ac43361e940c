"""The schema of recipes, extended by the `task` and `method` sections of plugins (other installed packages)."""

import copy
from collections.abc import Collection, Mapping
from functools import cache
from typing import Annotated, Any, Union, get_args

from pydantic import Field, TypeAdapter, create_model
from pydantic.fields import FieldInfo

from peftlab.recipe.method import Method
from peftlab.recipe.plugins import METHOD_PLUGINS, TASK_PLUGINS, load_section, plugin_names, section_types
from peftlab.recipe.schema import Recipe
from peftlab.recipe.tasks import TaskFields
from peftlab.recipe.types import Section

PLUGIN_SECTIONS: dict[str, tuple[str, type[Section]]] = {
    "task": (TASK_PLUGINS, TaskFields),
    "method": (METHOD_PLUGINS, Method),
}
"""Section of a recipe → its entry-point group, and the base class of the section classes of plugins."""


def section_classes(field: FieldInfo) -> dict[str, type[Section]]:
    """The classes of a union section, by type; empty if the section is no union."""
    classes = get_args(field.annotation) if field.discriminator else ()
    return {name: section for section in classes for name in section_types(section)}


def plugin_types(section: str) -> list[str]:
    """The types of `task` or `method` that only plugins provide; no plugin is imported."""
    if section not in PLUGIN_SECTIONS:
        return []
    own = section_classes(Recipe.model_fields[section])
    return [name for name in plugin_names(PLUGIN_SECTIONS[section][0]) if name not in own]


def extended_schema(types: Mapping[str, Collection[str]]) -> type[Recipe]:
    """`Recipe`, extended by these types of plugins for each section, as in `{"method": ["scale"]}`.

    Raises:
        PluginError: a plugin cannot be used.
    """
    sections = {
        section: tuple(load_section(*_plugin(section, name)) for name in names)
        for section, names in types.items()
        if names
    }
    return _schema(**sections) if sections else Recipe


def complete_schema() -> type[Recipe]:
    """`Recipe`, extended by all types of all installed plugins.

    Raises:
        PluginError: a plugin cannot be used.
    """
    return extended_schema({section: plugin_types(section) for section in PLUGIN_SECTIONS})


def parse_method(values: Mapping[str, Any]) -> Method:
    """Validate the `method` section alone, as in `{"type": "lora", "r": 8}`.

    Raises:
        pydantic.ValidationError: a key or a value is wrong.
        PluginError: the plugin that provides this type cannot be used.
    """
    name = values.get("type", "lora")
    schema = extended_schema({"method": [name] if name in plugin_types("method") else []})
    field = schema.model_fields["method"]
    union: Any = Annotated[(field.annotation, Field(discriminator="type"), *field.metadata)]
    method: Method = TypeAdapter(union).validate_python(values)
    return method


def _plugin(section: str, name: str) -> tuple[str, str, type[Section]]:
    group, base = PLUGIN_SECTIONS[section]
    return group, name, base


@cache
def _schema(**sections: tuple[type[Section], ...]) -> type[Recipe]:
    fields: dict[str, Any] = {}
    for name, classes in sections.items():
        field = copy.copy(Recipe.model_fields[name])
        fields[name] = (Union[(*get_args(field.annotation), *classes)], field)  # built at run time
    return create_model("Recipe", __base__=Recipe, __module__=Recipe.__module__, **fields)

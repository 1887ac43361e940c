"""Methods and tasks of other installed packages, found by the entry points `peftlab.methods` and `peftlab.tasks`.

The name of an entry point is the type in a recipe, and its value is a record. A package is imported only when its type
is used; the names are read from its metadata.
"""

import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar, get_args

from peftlab.errors import PluginError
from peftlab.recipe.types import Section

METHOD_PLUGINS = "peftlab.methods"
TASK_PLUGINS = "peftlab.tasks"
Record = TypeVar("Record")
SectionType = TypeVar("SectionType", bound=Section)


class Registry(Mapping[str, Record]):
    """Records by type: peftlab's own, and those that other packages provide in an entry-point group.

    The record of a package is imported and checked when it is looked up. A package cannot replace peftlab's own types.
    """

    def __init__(self, group: str, record_type: type[Record], own: Mapping[str, Record]) -> None:
        self.group, self.record_type, self.own = group, record_type, own

    def __getitem__(self, name: str) -> Record:
        """The record of this type.

        Raises:
            KeyError: there is no such type.
            PluginError: the package that provides it cannot be used.
        """
        return self.own[name] if name in self.own or name not in plugin_names(self.group) else self._load(name)

    def _load(self, name: str) -> Record:
        record = load_plugin(self.group, name)
        if not isinstance(record, self.record_type):
            expected_type = self.record_type.__name__
            raise PluginError(f"{_source(self.group, name)} should be a {expected_type}, not {type(record).__name__}.")
        return record

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in plugin_names(self.group)

    def __iter__(self) -> Iterator[str]:
        yield from self.own
        yield from (name for name in plugin_names(self.group) if name not in self.own)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def plugin_names(group: str) -> list[str]:
    """The types that other packages provide; no package is imported."""
    return sorted(_entry_points(group, tuple(sys.path)))


def load_plugin(group: str, name: str) -> Any:
    """Load the object of the entry point with this name.

    Raises:
        PluginError: the package cannot be imported or has no such object, or two packages provide this name.
    """
    found = _entry_points(group, tuple(sys.path))[name]
    if len(found) > 1:
        packages = " and ".join(sorted(f"'{_package(point)}'" for point in found))
        raise PluginError(f"'{name}' is provided by the packages {packages}; uninstall one of them.")
    try:
        return found[0].load()
    except Exception as error:  # a package may fail in any way while it is imported
        message = f"{type(error).__name__}: {error}"
        raise PluginError(f"{_source(group, name)} cannot be imported: {message}") from error


def load_section(group: str, name: str, base: type[SectionType]) -> type[SectionType]:
    """The section class of the record that a package provides.

    Raises:
        PluginError: as in `load_plugin`, or the section of the record is no subclass of `base` with this type.
    """
    section = getattr(load_plugin(group, name), "section", None)
    if not (isinstance(section, type) and issubclass(section, base)):
        wanted = f"{base.__module__}.{base.__name__}"
        raise PluginError(f"{_source(group, name)} should be a record whose section is a subclass of {wanted}.")
    if name not in section_types(section):
        raise PluginError(f"{_source(group, name)}: its section should have the field type: Literal['{name}'].")
    return section


def section_types(section: type[Section]) -> tuple[str, ...]:
    """The values of `type` that a section class accepts."""
    return get_args(section.model_fields["type"].annotation) if "type" in section.model_fields else ()


@cache
def _entry_points(group: str, path: tuple[str, ...]) -> dict[str, list[EntryPoint]]:
    """Entry points by name; `path` is part of the cache key."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group):
        found.setdefault(point.name, []).append(point)
    return found


def _source(group: str, name: str) -> str:
    point = _entry_points(group, tuple(sys.path))[name][0]
    expected_type = {METHOD_PLUGINS: "method", TASK_PLUGINS: "task"}[group]
    return f"the {expected_type} '{name}' of the package '{_package(point)}' ({point.value})"


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "unknown"

"""How tests write a recipe: values of their own, with changes merged into the sections."""

from ruamel.yaml import YAML


def write_merged(file, values, changes, replaced=()):
    """Write `values` with `changes` to `file`, and give it.

    What is no section, or is one of those `replaced`, takes the place of what was there.
    """
    for section, content in changes.items():
        merged = isinstance(content, dict) and section not in replaced
        values[section] = {**values.get(section, {}), **content} if merged else content
    with file.open("w", encoding="utf8") as opened:
        YAML().dump(values, opened)
    return file

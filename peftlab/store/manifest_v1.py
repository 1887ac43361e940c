"""Manifests of format 1, which peftlab 0.3 to 0.12 wrote: no `format` key, and fewer keys in the earliest ones."""

from collections.abc import Mapping
from typing import Any

TASK_DEFAULTS: dict[str, Any] = {"options": {}, "learned": {}}
"""Early versions had one task type, without options and without fitted numbers."""
BASE_DEFAULTS: dict[str, Any] = {"quantization": None, "own_head": [], "bytes": None}
"""Early versions loaded every base in fp32, gave every task a new head, and did not measure memory."""
DEFAULTS = {"head_modules": None, "reload_difference": None}
"""Early versions did not record head_modules; imported adapters have no reload_difference."""


def upgrade_v1(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of format 1 → values of format 2, not validated yet: adds the keys that were not written then."""
    upgraded = {**DEFAULTS, **values, "format": 2}
    for section, defaults in (("task", TASK_DEFAULTS), ("base", BASE_DEFAULTS)):
        if isinstance(section_values := values.get(section), dict):
            upgraded[section] = {**defaults, **section_values}
    return upgraded

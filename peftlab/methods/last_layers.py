"""The last layers of a base trained as they are, the others frozen: what a delta has to be better than.

An adapter then holds whole layers, as a head is held: PEFT saves and loads them as `modules_to_save`.
"""

from typing import Any

from peft import LoraConfig
from peft.utils.constants import DUMMY_TARGET_MODULES

from peftlab.base import Base
from peftlab.errors import ErrorCollector
from peftlab.methods.target_modules import layer_names
from peftlab.recipe import LastLayers


def last_layers_config(base: Base, section: LastLayers, *, modules_to_save: list[str], **shared: Any) -> LoraConfig:
    """The PEFT configuration of an adapter that holds the last `section.layers` layers, and the head.

    Raises:
        RecipeError: the base has no more layers than are asked for.
    """
    layers = layer_names(base.model)
    with ErrorCollector() as errors:
        if section.layers >= len(layers):
            message = f"this base has {len(layers)} layers; all but the first can train."
            errors.add(message, key="method.layers", hint=f"Take 1 to {len(layers) - 1}.")
    saved = [*layers[-section.layers :], *modules_to_save]
    return LoraConfig(target_modules=DUMMY_TARGET_MODULES, modules_to_save=saved, **shared)

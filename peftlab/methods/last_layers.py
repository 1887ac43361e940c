"""Fine-tune the last layers of a base, and keep the others frozen: a baseline for methods with a delta.

The adapter contains complete layers, as PEFT's `modules_to_save`.
"""

from peft import LoraConfig
from peft.utils.constants import DUMMY_TARGET_MODULES

from peftlab.base import Base
from peftlab.errors import ErrorCollector
from peftlab.methods.target_modules import layer_names
from peftlab.recipe import LastLayers
from peftlab.tasks import Task


def last_layers_config(base: Base, section: LastLayers, task: Task) -> LoraConfig:
    """PEFT's configuration of an adapter that holds the last `section.layers` layers.

    Raises:
        RecipeError: the base has too few layers.
    """
    layers = layer_names(base.model)
    with ErrorCollector() as errors:
        if section.layers >= len(layers):
            message = f"this base has {len(layers)} layers; all but the first can train."
            errors.add(message, key="method.layers", hint=f"Take 1 to {len(layers) - 1}.")
    return LoraConfig(target_modules=DUMMY_TARGET_MODULES, modules_to_save=layers[-section.layers :])

"""Head only: the task's new head trains on the unchanged base (a linear probe).

PEFT has no such method, so the adapter is a LoRA without target modules: its files contain only the head, and plain
PEFT loads them like any other adapter.
"""

from peft import LoraConfig
from peft.utils.constants import DUMMY_TARGET_MODULES

from peftlab.base import Base
from peftlab.errors import ErrorCollector
from peftlab.recipe import Head
from peftlab.tasks import Task


def head_config(base: Base, section: Head, task: Task) -> LoraConfig:
    """PEFT's configuration of an adapter without a delta.

    Raises:
        RecipeError: the base's checkpoint contains the complete head, so no module is new.
    """
    with ErrorCollector() as errors:
        if not base.head_modules:
            errors.add(
                "'head' trains a new head, but this base's checkpoint contains the complete head.",
                key="method.type",
                hint="Take lora, or a base whose checkpoint has no head.",
            )
    return LoraConfig(target_modules=DUMMY_TARGET_MODULES)

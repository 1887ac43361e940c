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
        RecipeError: the task uses the head of the base's checkpoint, which stays frozen.
    """
    with ErrorCollector() as errors:
        if not base.head_modules:
            errors.add(
                f"'head' trains only a task's own head, but {task.type} uses the base's head, which stays frozen.",
                key="method.type",
                hint="Take lora.",
            )
    return LoraConfig(target_modules=DUMMY_TARGET_MODULES)

"""Head only: the base stays as it is, and just the task's new head trains on top of it (a linear probe).

PEFT has no method without a delta, but its LoRA may be aimed at nothing: the adapter's files then hold the head alone,
and plain PEFT loads them as any other adapter.
"""

from typing import Any

from peft import LoraConfig
from peft.utils.constants import DUMMY_TARGET_MODULES

from peftlab.base import Base
from peftlab.errors import ErrorCollector
from peftlab.recipe import Head


def head_config(base: Base, section: Head, **shared: Any) -> LoraConfig:
    """The PEFT configuration of an adapter without a delta; `shared` is what every method has.

    Raises:
        RecipeError: the base's checkpoint holds its whole head, so that no module is new.
    """
    with ErrorCollector() as errors:
        if not base.head_modules:
            errors.add(
                "'head' trains what a base has not learned yet, and this one's checkpoint holds its whole head.",
                key="method.type",
                hint="Take lora, or a base whose checkpoint has no head.",
            )
    return LoraConfig(target_modules=DUMMY_TARGET_MODULES, **shared)

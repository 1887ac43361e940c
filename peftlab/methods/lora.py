"""LoRA (Hu et al. 2021, arXiv:2106.09685), with rank-stabilized scaling (Kalajdzievski 2023) and
DoRA (Liu et al. 2024).

Fields are PEFT's `LoraConfig` fields under their own names.
"""

from typing import Any

from peft import LoraConfig

from peftlab.base import Base
from peftlab.methods.targets import resolve_targets
from peftlab.recipe import Lora


def lora_config(base: Base, section: Lora, **shared: Any) -> LoraConfig:
    """The PEFT configuration, aimed at full module names; `shared` is what every method has.

    Raises:
        RecipeError: the base has no such module or layer as `section` names.
    """
    return LoraConfig(
        r=section.r,
        lora_alpha=section.lora_alpha,
        lora_dropout=section.lora_dropout,
        target_modules=resolve_targets(base, section),
        use_rslora=section.use_rslora,
        use_dora=section.use_dora,
        **shared,
    )

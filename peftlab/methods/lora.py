"""LoRA (Hu et al. 2021, arXiv:2106.09685), with rank-stabilized scaling (Kalajdzievski 2023) and
DoRA (Liu et al. 2024).

Fields are PEFT's `LoraConfig` fields under their own names.
"""

from typing import Any

from peft import LoraConfig

from peftlab.recipe import Lora


def lora_config(section: Lora, target_modules: list[str], **common: Any) -> LoraConfig:
    """The PEFT configuration; `target_modules` are full module names, `common` what every method shares."""
    return LoraConfig(
        r=section.r,
        lora_alpha=section.lora_alpha,
        lora_dropout=section.lora_dropout,
        target_modules=target_modules,
        use_rslora=section.use_rslora,
        use_dora=section.use_dora,
        **common,
    )

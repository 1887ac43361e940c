"""AdaLoRA (Zhang et al. 2023, arXiv:2303.10512): P Λ Q instead of BA, of which entries of Λ are masked while it trains.

PEFT holds the layers and decides which entries to mask; `tuning/rank_allocation.py` asks it to after every step.
"""

from typing import Any

from peft import AdaLoraConfig

from peftlab.base import Base
from peftlab.methods.target_modules import resolve_targets
from peftlab.recipe import AdaLora

UNKNOWN_STEPS = 10**9  # PEFT wants a number before anyone knows it


def adalora_config(base: Base, section: AdaLora, **shared: Any) -> AdaLoraConfig:
    """The PEFT configuration, aimed at full module names, its steps still unknown; `shared` is what every method has.

    Raises:
        RecipeError: the base has no such module or layer as `section` names.
    """
    return AdaLoraConfig(
        target_r=section.target_r,
        init_r=section.init_r,
        total_step=UNKNOWN_STEPS,
        deltaT=section.deltaT,
        beta1=section.beta1,
        beta2=section.beta2,
        orth_reg_weight=section.orth_reg_weight,
        lora_alpha=section.lora_alpha,
        lora_dropout=section.lora_dropout,
        target_modules=resolve_targets(base, section),
        **shared,
    )

"""AdaLoRA (Zhang et al. 2023, arXiv:2303.10512): P Λ Q instead of BA; entries of Λ are masked during training.

PEFT has the layers and decides which entries to mask; a callback calls it after every step.
"""

from peft import AdaLoraConfig

from peftlab.base import Base
from peftlab.methods.target_modules import resolve_targets
from peftlab.recipe import AdaLora
from peftlab.tasks import Task

UNKNOWN_STEPS = 10**9  # PEFT requires a number of steps, which is not known yet


def adalora_config(base: Base, section: AdaLora, task: Task) -> AdaLoraConfig:
    """PEFT's configuration with full module names; the number of steps is still unknown.

    Raises:
        RecipeError: the base lacks a module or layer that `section` names.
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
    )

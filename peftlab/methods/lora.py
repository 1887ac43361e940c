"""LoRA (Hu et al. 2021, arXiv:2106.09685), with rank-stabilized scaling (Kalajdzievski 2023, arXiv:2312.03732), DoRA
(Liu et al. 2024, arXiv:2402.09353) and the learning rates of LoRA+ (Hayou et al. 2024, arXiv:2402.12354).

Fields have the names of PEFT's `LoraConfig`.
"""

from typing import Any

import torch
from peft import LoraConfig
from peft.optimizers import create_loraplus_optimizer

from peftlab.base import Base
from peftlab.errors import ErrorCollector
from peftlab.methods.target_modules import match_names, resolve_targets
from peftlab.methods.trainable_tokens import find_token_indices
from peftlab.recipe import Lora
from peftlab.tasks import Task


def lora_config(base: Base, section: Lora, task: Task) -> LoraConfig:
    """PEFT's configuration with full module names.

    Raises:
        RecipeError: the base lacks a module, layer or token that `section` names.
    """
    tokens = section.trainable_token_indices
    token_indices = find_token_indices(base, tokens, task) if tokens else None
    targets = resolve_targets(base, section)
    with ErrorCollector() as errors:
        for key in ("rank_pattern", "alpha_pattern"):
            match_names(targets, list(getattr(section, key)), errors, what="adapted layer", key=key)
    return LoraConfig(
        r=section.r,
        lora_alpha=section.lora_alpha,
        lora_dropout=section.lora_dropout,
        target_modules=targets,
        use_rslora=section.use_rslora,
        use_dora=section.use_dora,
        init_lora_weights=section.init_lora_weights,
        rank_pattern=section.rank_pattern,
        alpha_pattern=section.alpha_pattern,
        trainable_token_indices=token_indices,
    )


def loraplus_optimizer(
    model: torch.nn.Module,
    section: Lora,
    optimizer_type: type[torch.optim.Optimizer],
    settings: dict[str, Any],
    weight_decay: float,
) -> torch.optim.Optimizer | None:
    """An optimizer with LoRA+'s learning rates for A and B; None if the recipe sets no `loraplus_lr_ratio`."""
    if section.loraplus_lr_ratio is None:
        return None
    optimizer: torch.optim.Optimizer = create_loraplus_optimizer(
        model,
        optimizer_type,
        loraplus_lr_ratio=section.loraplus_lr_ratio,
        loraplus_weight_decay=weight_decay,
        **settings,
    )
    return optimizer

"""LayerNorm tuning (Zhao et al. 2023, arXiv:2312.11420): every norm of the base, by PEFT's `LNTuningConfig`."""

from typing import Any

import torch
from peft import LNTuningConfig

from peftlab.base import Base
from peftlab.methods.target_modules import every
from peftlab.recipe import LnTuning


def ln_tuning_config(base: Base, section: LnTuning, **shared: Any) -> LNTuningConfig:
    """The PEFT configuration, aimed at full module names; `shared` is what every method has.

    Raises:
        RecipeError: the base has no norm with weights in these layers, or none at all.
    """
    lacking = f"no norm of this '{base.model.config.model_type}' has weights."
    return LNTuningConfig(target_modules=every(base, section, _is_norm, lacking), **shared)


def _is_norm(module: torch.nn.Module) -> bool:
    """LayerNorm, RMSNorm and what architectures make of them for themselves, as LlamaRMSNorm."""
    return type(module).__name__.endswith("Norm") and next(module.parameters(), None) is not None

"""LayerNorm tuning (Zhao et al. 2023, arXiv:2312.11420): every norm of the base trains, by PEFT's `LNTuningConfig`."""

import torch
from peft import LNTuningConfig

from peftlab.base import Base
from peftlab.methods.target_modules import matching_modules
from peftlab.recipe import LnTuning
from peftlab.tasks import Task


def ln_tuning_config(base: Base, section: LnTuning, task: Task) -> LNTuningConfig:
    """PEFT's configuration with full module names.

    Raises:
        RecipeError: the base has no norm with weights in these layers, or no such norm at all.
    """
    none_found = f"no norm of this '{base.model.config.model_type}' has weights."
    return LNTuningConfig(target_modules=matching_modules(base, section, _is_norm, none_found))


def _is_norm(module: torch.nn.Module) -> bool:
    """Whether `module` is a LayerNorm, an RMSNorm, or an architecture's own class such as LlamaRMSNorm."""
    return type(module).__name__.endswith("Norm") and next(module.parameters(), None) is not None

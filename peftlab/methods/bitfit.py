"""BitFit (see `tuners.bias` for the paper): every module of the base with a bias."""

import torch

from peftlab.base import Base
from peftlab.methods.target_modules import matching_modules
from peftlab.methods.tuners.bias import BitFitConfig
from peftlab.recipe import BitFit
from peftlab.tasks import Task


def bitfit_config(base: Base, section: BitFit, task: Task) -> BitFitConfig:
    """PEFT's configuration with full module names.

    Raises:
        RecipeError: the base has no bias in these layers, or no bias at all, like Llama.
    """
    none_found = f"no module of this '{base.model.config.model_type}' has a bias."
    return BitFitConfig(target_modules=matching_modules(base, section, _has_bias, none_found))


def _has_bias(module: torch.nn.Module) -> bool:
    return isinstance(getattr(module, "bias", None), torch.Tensor)

"""BitFit (see `bias_tuner` for the paper): every module of the base with a bias."""

from typing import Any

import torch

from peftlab.base import Base
from peftlab.methods.target_modules import every
from peftlab.methods.tuners.bias import BitFitConfig
from peftlab.recipe import BitFit


def bitfit_config(base: Base, section: BitFit, **shared: Any) -> BitFitConfig:
    """The PEFT configuration, aimed at full module names; `shared` is what every method has.

    Raises:
        RecipeError: the base has no bias in these layers, or none at all, as Llama.
    """
    lacking = f"no module of this '{base.model.config.model_type}' has a bias."
    return BitFitConfig(target_modules=every(base, section, _has_bias, lacking), **shared)


def _has_bias(module: torch.nn.Module) -> bool:
    return isinstance(getattr(module, "bias", None), torch.Tensor)

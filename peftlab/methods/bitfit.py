"""BitFit (see `bias_tuner` for the paper): every module of the base with a bias."""

from typing import Any

import torch

from peftlab.base import Base
from peftlab.errors import Problems
from peftlab.methods.bias_tuner import BitFitConfig
from peftlab.methods.targets import in_layers, modules_of
from peftlab.recipe import BitFit


def bitfit_config(base: Base, section: BitFit, **shared: Any) -> BitFitConfig:
    """The PEFT configuration, aimed at full module names; `shared` is what every method has.

    Raises:
        RecipeError: the base has no bias in these layers, or none at all, as Llama.
    """
    modules = dict(base.model.named_modules())
    biased = [name for name in modules_of(base) if isinstance(getattr(modules[name], "bias", None), torch.Tensor)]
    with Problems() as problems:
        targets = in_layers(biased, biased, section.layers_to_transform, problems)
        if not biased:
            kind = base.model.config.model_type
            problems.add(f"no module of this '{kind}' has a bias.", key="method.type", hint="Take lora or ia3.")
    return BitFitConfig(target_modules=targets, **shared)

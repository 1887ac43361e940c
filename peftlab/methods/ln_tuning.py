"""LayerNorm tuning (Zhao et al. 2023, arXiv:2312.11420): every norm of the base, by PEFT's `LNTuningConfig`."""

from typing import Any

from peft import LNTuningConfig

from peftlab.base import Base
from peftlab.errors import Problems
from peftlab.methods.targets import in_layers, modules_of
from peftlab.recipe import LnTuning


def ln_tuning_config(base: Base, section: LnTuning, **shared: Any) -> LNTuningConfig:
    """The PEFT configuration, aimed at full module names; `shared` is what every method has.

    Raises:
        RecipeError: the base has no norm with weights in these layers, or none at all.
    """
    norms = [name for name in modules_of(base) if _is_norm(base.model.get_submodule(name))]
    with Problems() as problems:
        targets = in_layers(norms, norms, section.layers_to_transform, problems)
        if not norms:
            kind = base.model.config.model_type
            problems.add(f"no norm of this '{kind}' has weights.", key="method.type", hint="Take lora or ia3.")
    return LNTuningConfig(target_modules=targets, **shared)


def _is_norm(module: Any) -> bool:
    """LayerNorm, RMSNorm and what architectures make of them for themselves, as LlamaRMSNorm."""
    return type(module).__name__.endswith("Norm") and any(True for _ in module.parameters())

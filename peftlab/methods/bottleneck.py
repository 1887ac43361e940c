"""Bottleneck adapters (see `tuners.bottleneck` for the papers): from the recipe's section to PEFT's configuration."""

from dataclasses import dataclass

from peftlab.base import Base
from peftlab.errors import ErrorCollector
from peftlab.methods.architectures import ARCHITECTURES
from peftlab.methods.target_modules import filter_layers, list_modules, match_names
from peftlab.methods.tuners.bottleneck import BottleneckConfig
from peftlab.recipe import Bottleneck
from peftlab.tasks import Task


@dataclass(frozen=True)
class Defaults:
    """A variant's default values, from its paper or AdapterHub; `form` is for modules that the recipe names."""

    reduction_factor: int
    activation: str
    scaling: float
    init: str
    form: str


DEFAULTS = {
    "houlsby": Defaults(16, "silu", 1.0, "near-identity", "after"),
    "pfeiffer": Defaults(16, "relu", 1.0, "near-identity", "after"),
    "parallel": Defaults(2, "relu", 4.0, "zero-up", "beside"),
}


def bottleneck_config(base: Base, section: Bottleneck, task: Task) -> BottleneckConfig:
    """PEFT's configuration with full module names.

    Raises:
        RecipeError: the architecture is unknown and the section names no modules, or there are no such modules.
    """
    defaults, hidden_size = DEFAULTS[section.variant], base.model.config.hidden_size
    targets, form = _find_targets(base, section, defaults.form)
    return BottleneckConfig(
        variant=section.variant,
        form=form,
        hidden_size=hidden_size,
        bottleneck_size=max(1, hidden_size // (section.reduction_factor or defaults.reduction_factor)),
        activation=section.activation or defaults.activation,
        scaling=section.scaling or defaults.scaling,
        init=defaults.init,
        target_modules=targets,
    )


def _find_targets(base: Base, section: Bottleneck, form: str) -> tuple[list[str], str]:
    names = list_modules(base)
    with ErrorCollector() as errors:
        if section.target_modules:
            targets = match_names(names, section.target_modules, errors, what="module")
        else:
            targets, form = _architecture_targets(base.model.config.model_type, section.variant, names, errors)
        targets = filter_layers(targets, names, section.layers_to_transform, errors)
    if section.variant == "pfeiffer" and all("norm" in name.rpartition(".")[2].lower() for name in targets):
        form = "around-norm"
    return targets, form


def _architecture_targets(
    model_type: str, variant: str, names: list[str], errors: ErrorCollector
) -> tuple[list[str], str]:
    if model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        errors.add(
            f"peftlab does not know where the sub-layers of '{model_type}' end.",
            key="method.target_modules",
            hint=f"Name the modules that end them, such as [attn.out_proj, mlp.fc2]. Known: {known}.",
        )
        return [], ""
    targets, form = ARCHITECTURES[model_type].bottleneck_targets(variant, names)
    if not targets:
        message = f"'{variant}' is impossible in '{model_type}': its feed-forward network is not one module."
        errors.add(message, key="method.variant", hint="Take houlsby or pfeiffer.")
    return targets, form

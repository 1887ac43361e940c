"""Bottleneck adapters (see `bottleneck_tuner` for the papers): the recipe's section → a configuration with places."""

from dataclasses import dataclass
from typing import Any

from peftlab.base import Base
from peftlab.errors import ErrorCollector
from peftlab.methods.architectures import PLACEMENTS
from peftlab.methods.target_modules import in_layers, modules_of, named
from peftlab.methods.tuners.bottleneck import BottleneckConfig
from peftlab.recipe import Bottleneck


@dataclass(frozen=True)
class Defaults:
    """What a paper, or AdapterHub after it, takes where the recipe says nothing."""

    reduction_factor: int
    activation: str
    scaling: float
    init: str
    form: str
    """Of modules that the user names."""


DEFAULTS = {
    "houlsby": Defaults(16, "silu", 1.0, "near-identity", "after"),
    "pfeiffer": Defaults(16, "relu", 1.0, "near-identity", "after"),
    "parallel": Defaults(2, "relu", 4.0, "zero-up", "beside"),
}


def bottleneck_config(base: Base, section: Bottleneck, **shared: Any) -> BottleneckConfig:
    """The configuration, aimed at full module names; `shared` is what every method has.

    Raises:
        RecipeError: nobody has said where the sub-layers of this architecture end, or what was named is not there.
    """
    defaults, width = DEFAULTS[section.variant], base.model.config.hidden_size
    targets, form = _targets(base, section, defaults.form)
    return BottleneckConfig(
        variant=section.variant,
        form=form,
        hidden_size=width,
        bottleneck_size=max(1, width // (section.reduction_factor or defaults.reduction_factor)),
        activation=section.activation or defaults.activation,
        scaling=section.scaling or defaults.scaling,
        init=defaults.init,
        target_modules=targets,
        **shared,
    )


def _targets(base: Base, section: Bottleneck, form: str) -> tuple[list[str], str]:
    names = modules_of(base)
    with ErrorCollector() as errors:
        if section.target_modules:
            targets = named(names, section.target_modules, errors, what="module")
        else:
            targets, form = _placed(base.model.config.model_type, section.variant, names, errors)
        targets = in_layers(targets, names, section.layers_to_transform, errors)
    if section.variant == "pfeiffer" and all("norm" in name.rpartition(".")[2].lower() for name in targets):
        form = "around-norm"
    return targets, form


def _placed(kind: str, variant: str, names: list[str], errors: ErrorCollector) -> tuple[list[str], str]:
    if kind not in PLACEMENTS:
        errors.add(
            f"peftlab does not know where the sub-layers of '{kind}' end.",
            key="method.target_modules",
            hint=f"Name the modules that end them, such as [attn.out_proj, mlp.fc2]. Known: {', '.join(PLACEMENTS)}.",
        )
        return [], ""
    targets, form = PLACEMENTS[kind].targets(variant, names)
    if not targets:
        message = f"'{variant}' has no place in '{kind}', whose feed-forward network is no module of its own."
        errors.add(message, key="method.variant", hint="Take houlsby or pfeiffer.")
    return targets, form

"""Prefix tuning (see `prefix_tuner` for the papers): the recipe's section → a configuration with places."""

from typing import Any

from peftlab.base import Base
from peftlab.errors import ErrorCollector, reraise_as_recipe_error
from peftlab.methods.architectures import PLACEMENTS
from peftlab.methods.target_modules import in_layers, modules_of, named
from peftlab.methods.tuners.prefix import PrefixConfig
from peftlab.methods.tuners.prefix_attention import ATTENDS_BY_MASK, key_widths
from peftlab.recipe import Prefix


def prefix_config(base: Base, section: Prefix, **shared: Any) -> PrefixConfig:
    """The configuration, aimed at full module names; `shared` is what every method has.

    Raises:
        RecipeError: nobody has said where this architecture attends, what was named is not there or attends in another
            way, or the base computes attention by a kernel that has no place for a prefix.
    """
    with ErrorCollector() as errors:
        targets, form = _targets(base, section, errors)
        if form == "interface":
            _check_kernel(base.model.config._attn_implementation, errors)
    with reraise_as_recipe_error("a prefix cannot be put into this base", ValueError, key="method"):
        widths = key_widths(base.model, targets, form)
    with ErrorCollector() as errors:
        width = _width(widths, targets, errors)
    return PrefixConfig(
        form=form,
        num_virtual_tokens=section.num_virtual_tokens,
        width=width,
        prefix_projection=section.prefix_projection,
        encoder_hidden_size=section.encoder_hidden_size or width,
        target_modules=targets,
        **shared,
    )


def _targets(base: Base, section: Prefix, errors: ErrorCollector) -> tuple[list[str], str]:
    names = modules_of(base)
    targets, form = _placed(base.model.config.model_type, names, section, errors)
    if section.target_modules:
        targets = named(names, section.target_modules, errors, what="module")
    return in_layers(targets, names, section.layers_to_transform, errors), form


def _placed(kind: str, names: list[str], section: Prefix, errors: ErrorCollector) -> tuple[list[str], str]:
    if kind in PLACEMENTS:
        targets, form = PLACEMENTS[kind].attending(names)
        if not targets:
            message = f"prefixes have no place in '{kind}', which has an attention of its own kind."
            errors.add(message, key="method.type", hint="Take lora, ia3 or prompt.")
        return targets, form
    if not section.target_modules:
        errors.add(
            f"peftlab does not know the self-attention modules of '{kind}'.",
            key="method.target_modules",
            hint=f"Name them, as in [self_attn]. Known: {', '.join(PLACEMENTS)}.",
        )
    return [], "interface"


def _check_kernel(name: str | None, errors: ErrorCollector) -> None:
    if name not in ATTENDS_BY_MASK:
        message = f"prefixes do not go with '{name}', which sees keys by their positions."
        errors.add(message, key="base.attn_implementation", hint="Take eager or sdpa.")


def _width(widths: dict[str, int], targets: list[str], errors: ErrorCollector) -> int:
    """The one that all targets have."""
    for name in targets:
        if name not in widths:
            message = f"'{name}' does not compute attention by Transformers' attention interface itself."
            errors.add(message, key="method.target_modules", hint="Name modules that do, or take lora or prompt.")
    if len(set(widths.values())) > 1:
        told = ", ".join(f"{name} {width}" for name, width in widths.items())
        hint = "Choose layers that are alike, by layers_to_transform."
        errors.add(f"the keys are not equally wide in all layers: {told}.", key="method.target_modules", hint=hint)
    return next(iter(widths.values()), 0)

"""Prefix tuning (see `tuners.prefix` for the papers): from the recipe's section to PEFT's configuration."""

from peftlab.base import Base
from peftlab.errors import ErrorCollector, reraise_as_recipe_error
from peftlab.methods.architectures import ARCHITECTURES
from peftlab.methods.target_modules import filter_layers, list_modules, match_names
from peftlab.methods.tuners.prefix import PrefixConfig
from peftlab.methods.tuners.prefix_attention import MASKED_ATTENTION, key_widths
from peftlab.recipe import Prefix
from peftlab.tasks import Task


def prefix_config(base: Base, section: Prefix, task: Task) -> PrefixConfig:
    """PEFT's configuration with full module names.

    Raises:
        RecipeError: the architecture is unknown and the section names no modules, the named ones do not exist or have
            another kind of attention, or the base's attention kernel cannot take a prefix.
    """
    with ErrorCollector() as errors:
        targets, form = _find_targets(base, section, errors)
        if form == "interface":
            _check_kernel(base.model.config._attn_implementation, errors)
    with reraise_as_recipe_error("a prefix cannot be put into this base", ValueError, key="method"):
        widths = key_widths(base.model, targets, form)
    with ErrorCollector() as errors:
        width = _common_width(widths, targets, errors)
    return PrefixConfig(
        form=form,
        num_virtual_tokens=section.num_virtual_tokens,
        width=width,
        prefix_projection=section.prefix_projection,
        encoder_hidden_size=section.encoder_hidden_size or width,
        target_modules=targets,
    )


def _find_targets(base: Base, section: Prefix, errors: ErrorCollector) -> tuple[list[str], str]:
    names = list_modules(base)
    targets, form = _architecture_targets(base.model.config.model_type, names, section, errors)
    if section.target_modules:
        targets = match_names(names, section.target_modules, errors, what="module")
    return filter_layers(targets, names, section.layers_to_transform, errors), form


def _architecture_targets(
    model_type: str, names: list[str], section: Prefix, errors: ErrorCollector
) -> tuple[list[str], str]:
    if model_type in ARCHITECTURES:
        targets, form = ARCHITECTURES[model_type].prefix_targets(names)
        if not targets:
            message = f"prefixes are impossible in '{model_type}', because its attention is of another kind."
            errors.add(message, key="method.type", hint="Take lora, ia3 or prompt.")
        return targets, form
    if not section.target_modules:
        errors.add(
            f"peftlab does not know the self-attention modules of '{model_type}'.",
            key="method.target_modules",
            hint=f"Name them, as in [self_attn]. Known: {', '.join(ARCHITECTURES)}.",
        )
    return [], "interface"


def _check_kernel(name: str | None, errors: ErrorCollector) -> None:
    if name not in MASKED_ATTENTION:
        message = f"prefixes do not work with '{name}', because it masks keys by their positions."
        errors.add(message, key="base.attn_implementation", hint="Take eager or sdpa.")


def _common_width(widths: dict[str, int], targets: list[str], errors: ErrorCollector) -> int:
    """The width of the keys, which must be the same in all targets."""
    for name in targets:
        if name not in widths:
            message = f"'{name}' does not use Transformers' attention interface."
            errors.add(message, key="method.target_modules", hint="Name modules that do, or take lora or prompt.")
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{name} {width}" for name, width in widths.items())
        hint = "Choose layers of the same width with layers_to_transform."
        errors.add(f"the keys are not equally wide in all layers: {listed}.", key="method.target_modules", hint=hint)
    return next(iter(widths.values()), 0)

"""(IA)³ (Liu et al. 2022, arXiv:2205.05638): keys, values and inner activations of feed-forward networks, rescaled."""

from typing import Any

from peft import IA3Config

from peftlab.base import Base
from peftlab.errors import ErrorCollector
from peftlab.methods.architectures import PLACEMENTS
from peftlab.methods.target_modules import linears_of, named
from peftlab.recipe import Ia3


def ia3_config(base: Base, section: Ia3, **shared: Any) -> IA3Config:
    """The PEFT configuration, aimed at full module names; `shared` is what every method has.

    Raises:
        RecipeError: nobody has said which modules make keys and values here, or what was named is not there.
    """
    with ErrorCollector() as errors:
        outputs, inputs = _targets(base, section, errors)
    return IA3Config(target_modules=[*outputs, *inputs], feedforward_modules=inputs, **shared)


def _targets(base: Base, section: Ia3, errors: ErrorCollector) -> tuple[list[str], list[str]]:
    """Modules whose outputs are rescaled, and those whose inputs are."""
    names, kind = linears_of(base), base.model.config.model_type
    if section.target_modules:
        inputs = named(names, section.feedforward_modules, errors, key="feedforward_modules")
        return [name for name in named(names, section.target_modules, errors) if name not in inputs], inputs
    outputs, inputs = PLACEMENTS[kind].rescaled(names) if kind in PLACEMENTS else ([], [])
    if not outputs:
        hint = "Name them with target_modules, and the ends of feed-forward networks with feedforward_modules."
        errors.add(f"no module of '{kind}' is known to make keys or values alone.", key="method", hint=hint)
    return outputs, inputs

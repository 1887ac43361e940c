"""(IA)³ (Liu et al. 2022, arXiv:2205.05638): scales keys, values and inner activations of feed-forward networks."""

from peft import IA3Config

from peftlab.base import Base
from peftlab.errors import ErrorCollector
from peftlab.methods.architectures import ARCHITECTURES
from peftlab.methods.target_modules import list_linear_layers, match_names
from peftlab.recipe import Ia3
from peftlab.tasks import Task


def ia3_config(base: Base, section: Ia3, task: Task) -> IA3Config:
    """PEFT's configuration with full module names.

    Raises:
        RecipeError: it is unknown which modules compute keys and values, or there are no such modules.
    """
    with ErrorCollector() as errors:
        outputs, inputs = _find_targets(base, section, errors)
    return IA3Config(target_modules=[*outputs, *inputs], feedforward_modules=inputs)


def _find_targets(base: Base, section: Ia3, errors: ErrorCollector) -> tuple[list[str], list[str]]:
    """The modules whose outputs are scaled, and the modules whose inputs are scaled."""
    names, model_type = list_linear_layers(base), base.model.config.model_type
    if section.target_modules:
        inputs = match_names(names, section.feedforward_modules, errors, key="feedforward_modules")
        return [name for name in match_names(names, section.target_modules, errors) if name not in inputs], inputs
    known = ARCHITECTURES.get(model_type)
    outputs, inputs = known.ia3_targets(names) if known else ([], [])
    if not outputs:
        hint = "Name them with target_modules, and the ends of feed-forward networks with feedforward_modules."
        errors.add(f"peftlab knows no key or value projections of '{model_type}'.", key="method", hint=hint)
    return outputs, inputs

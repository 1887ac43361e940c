"""Which objective a domain adaptation has: the recipe's, or what the base was pretrained for, by its configuration."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from peftlab.base import find_base
from peftlab.errors import ErrorCollector, ValidationIssue
from peftlab.recipe import DomainAdaptation, Recipe
from peftlab.recipe.compatibility import check_compatibility
from peftlab.tasks import TASKS
from peftlab.tuning.dataset import TuningDataset
from peftlab.tuning.session import TuningSession

HEADS: dict[str, tuple[str, Mapping[str, str], tuple[str, ...]]] = {
    "masked-lm": ("AutoModelForMaskedLM", MODEL_FOR_MASKED_LM_MAPPING_NAMES, ("ForMaskedLM",)),
    "causal-lm": ("AutoModelForCausalLM", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, ("ForCausalLM", "LMHeadModel")),
}
"""Objective → the Transformers class that loads its head, the architectures that have one, and ends of their names."""


def choose_objective(recipe: Recipe, dataset: TuningDataset, session: TuningSession) -> tuple[Recipe, TuningDataset]:
    """Set the objective of a domain adaptation; for any other task, return both unchanged.

    Raises:
        RecipeError: the base was not pretrained for the objective, or for none, or the rest of the recipe does not go
            with it.
        BaseNotFoundError: the base was not found.
    """
    if not isinstance(recipe.task, DomainAdaptation):
        return recipe, dataset
    with session.process_group.sync_errors():
        recipe = _with_objective(recipe, recipe.task)
    task = TASKS[recipe.task.type](**recipe.task.model_dump(exclude={"type"}))
    return recipe, replace(dataset, task=task)


def _with_objective(recipe: Recipe, section: DomainAdaptation) -> Recipe:
    config = find_base(recipe.base).config
    objective = section.objective or _pretrained_for(config)
    with ErrorCollector() as errors:
        for issue in _clashes(recipe, objective, config):
            errors.add(issue.message, key=issue.key, hint=issue.hint)
    assert objective is not None  # or else that was a problem
    decided = section.model_copy(update={"objective": objective})
    recipe = recipe.model_copy(update={"task": decided})
    if section.objective is None:
        with ErrorCollector() as errors:
            check_compatibility(recipe, errors)
    return recipe


def _pretrained_for(config: Mapping[str, Any]) -> str | None:
    """What the class that saved the base says, or else what its architecture can do."""
    saved = config.get("architectures") or []
    told = [name for name, (*_, ends) in HEADS.items() if any(one.endswith(ends) for one in saved)]
    if len(told) != 1:
        told = [name for name in HEADS if _has_head(name, config)]
    both = len(told) == len(HEADS)
    return ("causal-lm" if config.get("is_decoder") else "masked-lm") if both else next(iter(told), None)


def _has_head(objective: str, config: Mapping[str, Any]) -> bool:
    auto_class, architectures, _ = HEADS[objective]
    own = config.get("auto_map", {})  # of a base that comes with code
    return config.get("model_type") in architectures or auto_class in own


def _clashes(recipe: Recipe, objective: str | None, config: Mapping[str, Any]) -> Iterator[ValidationIssue]:
    model, kind, section = recipe.base.model, config.get("model_type"), recipe.task
    assert isinstance(section, DomainAdaptation)
    if config.get("is_encoder_decoder"):
        message = f"'{model}' ({kind}) is an encoder with a decoder, and domain-adaptation takes one or the other."
        yield ValidationIssue(message, key="base.model", hint="Take an encoder with masks, or a causal language model.")
    elif objective is None:
        message = f"'{model}' ({kind}) is of an architecture that Transformers has no language model of."
        yield ValidationIssue(
            message, key="base.model", hint="Take a text model that was pretrained as a language model."
        )
    elif not _has_head(objective, config):
        message = f"'{model}' ({kind}) is of an architecture that has no head for {objective}."
        yield ValidationIssue(message, key="task.objective", hint=f"Take {_other(objective)}, or another base.")
    elif objective == "causal-lm" and _has_head("masked-lm", config) and not config.get("is_decoder"):
        message = f"'{model}' ({kind}) sees the tokens after each as well, so there is nothing to foresee."
        yield ValidationIssue(message, key="task.objective", hint="Take masked-lm.")
    for key, fitting in (("mask_probability", "masked-lm"), ("generation", "causal-lm")):
        if objective and objective != fitting and getattr(section, key) is not None:
            message = f"'{model}' was pretrained for {objective}, which has none."
            yield ValidationIssue(message, key=f"task.{key}", hint=f"Take it out: it belongs to {fitting}.")


def _other(objective: str) -> str:
    return next(name for name in HEADS if name != objective)

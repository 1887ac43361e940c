"""Choose the objective of a domain adaptation: the recipe's, or else the one that the base was pretrained with."""

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
"""Objective → Transformers class that loads its head, architectures that have one, and suffixes of their names."""


def choose_objective(recipe: Recipe, dataset: TuningDataset, session: TuningSession) -> tuple[Recipe, TuningDataset]:
    """Set the objective of a domain adaptation; for any other task, return both unchanged.

    Raises:
        RecipeError: the base has no head for the objective, or the recipe has settings of another objective.
        BaseNotFoundError: the base was not found.
    """
    if not isinstance(recipe.task, DomainAdaptation):
        return recipe, dataset
    with session.process_group.sync_errors():
        recipe = _with_objective(recipe, recipe.task)
    task = TASKS[recipe.task.type].build(**recipe.task.model_dump(exclude={"type"}))
    return recipe, replace(dataset, task=task)


def _with_objective(recipe: Recipe, section: DomainAdaptation) -> Recipe:
    config = find_base(recipe.base).config
    objective = section.objective or _pretrained_for(config)
    with ErrorCollector() as errors:
        for issue in _conflicts(recipe, objective, config):
            errors.add(issue.message, key=issue.key, hint=issue.hint)
    assert objective is not None  # otherwise an error was raised
    section_with_objective = section.model_copy(update={"objective": objective})
    recipe = recipe.model_copy(update={"task": section_with_objective})
    if section.objective is None:
        with ErrorCollector() as errors:
            check_compatibility(recipe, errors)
    return recipe


def _pretrained_for(config: Mapping[str, Any]) -> str | None:
    """The objective of the class that saved the base, or else the one that its architecture supports."""
    saved = config.get("architectures") or []
    objectives = [name for name, (*_, suffixes) in HEADS.items() if any(cls.endswith(suffixes) for cls in saved)]
    if len(objectives) != 1:
        objectives = [name for name in HEADS if _has_head(name, config)]
    if len(objectives) == len(HEADS):
        return "causal-lm" if config.get("is_decoder") else "masked-lm"
    return next(iter(objectives), None)


def _has_head(objective: str, config: Mapping[str, Any]) -> bool:
    auto_class, architectures, _ = HEADS[objective]
    custom_classes = config.get("auto_map", {})  # of a base with its own code
    return config.get("model_type") in architectures or auto_class in custom_classes


def _conflicts(recipe: Recipe, objective: str | None, config: Mapping[str, Any]) -> Iterator[ValidationIssue]:
    base, section = f"'{recipe.base.model}' ({config.get('model_type')})", recipe.task
    assert isinstance(section, DomainAdaptation)
    if config.get("is_encoder_decoder"):
        message = f"{base} is an encoder-decoder; domain-adaptation supports only one of the two."
        yield ValidationIssue(message, key="base.model", hint="Use a masked or a causal language model.")
    elif objective is None:
        message = f"{base} has an architecture for which Transformers has no language model."
        yield ValidationIssue(
            message, key="base.model", hint="Use a text model that was pretrained as a language model."
        )
    elif not _has_head(objective, config):
        message = f"{base} has an architecture without a head for {objective}."
        yield ValidationIssue(message, key="task.objective", hint=f"Use {_other(objective)}, or another base.")
    elif objective == "causal-lm" and _has_head("masked-lm", config) and not config.get("is_decoder"):
        message = f"{base} also attends to later tokens, so it cannot be trained to predict the next token."
        yield ValidationIssue(message, key="task.objective", hint="Use masked-lm.")
    for key, required in (("mask_probability", "masked-lm"), ("generation", "causal-lm")):
        if objective and objective != required and getattr(section, key) is not None:
            message = f"'{recipe.base.model}' was pretrained for {objective}, which does not use it."
            yield ValidationIssue(message, key=f"task.{key}", hint=f"Remove it: it belongs to {required}.")


def _other(objective: str) -> str:
    return next(name for name in HEADS if name != objective)

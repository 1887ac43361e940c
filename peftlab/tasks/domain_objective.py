"""The objective of a domain adaptation: the recipe's, or else the one that the base model was pretrained with."""

from collections.abc import Iterator, Mapping
from typing import Any

from peftlab.errors import ErrorCollector, ValidationIssue
from peftlab.imports import auto_models
from peftlab.recipe import DomainAdaptation

HEADS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "masked-lm": ("AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING_NAMES", ("ForMaskedLM",)),
    "causal-lm": ("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", ("ForCausalLM", "LMHeadModel")),
}
"""Objective → Transformers class that loads its head, its table of architectures, and suffixes of their names."""


def choose_objective(
    section: DomainAdaptation, base_name: str, config: Mapping[str, Any], errors: ErrorCollector
) -> DomainAdaptation:
    """The section with its objective; see `TaskRecord.complete_section`.

    It is an error if the base has no head for the objective, or if the section has settings of another objective.
    """
    objective = section.objective or _pretrained_for(config)
    for issue in _conflicts(section, base_name, objective, config):
        errors.add(issue.message, key=issue.key, hint=issue.hint)
    return section.model_copy(update={"objective": objective})


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
    auto_class, table, _ = HEADS[objective]
    custom_classes = config.get("auto_map", {})  # of a base with its own code
    return config.get("model_type") in getattr(auto_models, table) or auto_class in custom_classes


def _conflicts(
    section: DomainAdaptation, base_name: str, objective: str | None, config: Mapping[str, Any]
) -> Iterator[ValidationIssue]:
    base = f"'{base_name}' ({config.get('model_type')})"
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
            message = f"'{base_name}' was pretrained for {objective}, which does not use it."
            yield ValidationIssue(message, key=f"task.{key}", hint=f"Remove it: it belongs to {required}.")


def _other(objective: str) -> str:
    return next(name for name in HEADS if name != objective)

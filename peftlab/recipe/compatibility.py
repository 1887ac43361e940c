"""Find sections of a recipe that cannot be combined, before anything is loaded."""

from collections.abc import Iterator

from peftlab.errors import ErrorCollector, ValidationIssue
from peftlab.recipe.schema import SHARDING, Recipe
from peftlab.recipe.types import Quantization

_OTHER_QUANTIZATION: dict[Quantization, Quantization] = {"8bit": "4bit", "4bit": "8bit"}


def check_compatibility(recipe: Recipe, errors: ErrorCollector) -> None:
    """Record every key that cannot be combined with another part of the recipe."""
    for issue in _find_conflicts(recipe):
        errors.add(issue.message, key=issue.key, hint=issue.hint)


def _find_conflicts(recipe: Recipe) -> Iterator[ValidationIssue]:
    yield from _quantization_conflicts(recipe)
    yield from _task_conflicts(recipe)
    yield from _freeze_conflicts(recipe)
    if recipe.method.start_from:
        for reason in filter(None, (limits.start_from for limits in recipe.method.limits)):
            yield ValidationIssue(reason, key="method.start_from", hint="Remove it, or use another method.")
    if recipe.training.packing:
        yield from _packing_conflicts(recipe)
    if recipe.training.torch_compile:
        yield from _compile_conflicts(recipe)
    if recipe.training.distributed in SHARDING:
        for reason in _sharding_conflicts(recipe):
            yield ValidationIssue(
                reason, key="training.distributed", hint="Use ddp, where each process keeps a full copy of the base."
            )


def _quantization_conflicts(recipe: Recipe) -> Iterator[ValidationIssue]:
    method, quantization = recipe.method, recipe.base.quantization
    if conflict := method.quantization_error(quantization):
        key, message = conflict
        other = _OTHER_QUANTIZATION[quantization] if quantization else None
        instead = "lora" if method.quantization_error(other) else f"lora or {other}"
        yield ValidationIssue(message, key=f"method.{key}", hint=f"Take {instead}, or remove base.quantization.")


def _task_conflicts(recipe: Recipe) -> Iterator[ValidationIssue]:
    """Reasons why the method cannot be combined with the task."""
    method, task = recipe.method, recipe.task
    for limits in method.limits:
        if reason := (
            (task.is_encoder_decoder and limits.encoder_decoder) or (task.uses_base_head and limits.base_head)
        ):
            yield ValidationIssue(reason, key="method.type", hint="Take lora, or another method.")
    if recipe.base.pooling != "auto" and not task.has_pooled_output:
        message = f"{task.type} has no pooled output: it predicts for single tokens, or generates text."
        yield ValidationIssue(message, key="base.pooling", hint="Remove it.")
    if task.uses_base_head and recipe.training.head_learning_rate:
        message = f"{task.type} adds no head to the base, but uses the base's own, which stays frozen."
        yield ValidationIssue(message, key="training.head_learning_rate", hint="Remove it.")
    if recipe.training.head_init == "probe" and (not task.has_baselines or method.start_from):
        why = "its weights are those of method.start_from" if task.has_baselines else f"{task.type} adds no linear head"
        yield ValidationIssue(
            f"the head cannot start from a probe: {why}.", key="training.head_init", hint="Remove it."
        )
    if recipe.training.few_shot == "contrastive" and (reason := contrastive_conflict(recipe)):
        yield ValidationIssue(reason, key="training.few_shot", hint="Remove it, or set it to off.")
    if method.has_trainable_tokens and not task.trains_token_embeddings:
        message = f"single token embeddings can be trained for causal-lm, not for {task.type}."
        yield ValidationIssue(message, key="method.trainable_token_indices", hint="Remove it.")


def _freeze_conflicts(recipe: Recipe) -> Iterator[ValidationIssue]:
    """Reasons why parameters of the recipe cannot be frozen."""
    if not recipe.training.freeze:
        return
    for reason in filter(None, (limits.freeze for limits in recipe.method.limits)):
        yield ValidationIssue(reason, key="training.freeze", hint="Remove it, or take lora.")
    if recipe.training.packing and recipe.training.frozen_cache:
        message = "the outputs of frozen layers are cached for each text, and packed texts share rows."
        yield ValidationIssue(message, key="training.freeze", hint="Turn the cache off: training.frozen_cache: null.")


def contrastive_conflict(recipe: Recipe) -> str:
    """Why contrastive training (`training.few_shot`) is not possible with this recipe; empty if it is."""
    task = recipe.task
    reasons = [limits.contrastive for limits in recipe.method.limits]
    if not task.classifies_inputs:
        reasons.append(f"contrastive training needs one label per input, and {task.type} has none.")
    if getattr(task, "multi_label", False):
        reasons.append("contrastive training needs one label per text, and multi_label allows several.")
    if recipe.training.distributed in SHARDING:
        reasons.append("contrastive training fits a linear probe, which needs the full base in each process.")
    if recipe.training.train_sampling_strategy == "random":
        reasons.append("contrastive training draws the rows of a batch by class, not at random.")
    return next(filter(None, reasons), "")


def _sharding_conflicts(recipe: Recipe) -> Iterator[str]:
    """Reasons why the recipe cannot use fsdp or deepspeed, where each process keeps only a shard of the base."""
    strategy, task = recipe.training.distributed, recipe.task
    if task.sharding_conflict:
        yield task.sharding_conflict
    yield from filter(None, (limits.sharding for limits in recipe.method.limits))
    if recipe.base.quantization:
        yield f"{strategy} cannot shard a base in {recipe.base.quantization}."
    if recipe.training.torch_compile:
        yield f"{strategy} shards layers that torch.compile has compiled as a whole."


def _compile_conflicts(recipe: Recipe) -> Iterator[ValidationIssue]:
    if recipe.training.fused_lora:
        message = "torch.compile compiles PEFT's layers and would bypass the fused function."
        yield ValidationIssue(message, key="training.fused_lora", hint="Remove one of the two.")


def _packing_conflicts(recipe: Recipe) -> Iterator[ValidationIssue]:
    if reason := recipe.task.packing_conflict:
        yield ValidationIssue(reason, key="training.packing", hint="Remove it.")
    if recipe.method.freezes_lower_layers and recipe.training.frozen_cache:
        message = "the outputs of frozen layers are cached for each text, and packed texts share rows."
        hint = "Remove it, or turn the cache off: training.frozen_cache: null."
        yield ValidationIssue(message, key="training.packing", hint=hint)

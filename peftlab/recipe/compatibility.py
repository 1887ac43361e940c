"""What one section of a recipe forbids in another: told with its line, before anything is loaded."""

from collections.abc import Iterator, Mapping

from peftlab.errors import ErrorCollector, ValidationIssue
from peftlab.recipe.methods import Lora, MethodSection
from peftlab.recipe.schema import SHARDING, Quantization, Recipe
from peftlab.recipe.tasks import (
    SCORED_BY_WRITING,
    CausalLm,
    DomainAdaptation,
    Preference,
    Summarization,
    TaskSection,
    Translation,
)

_OTHER: dict[Quantization, Quantization] = {"8bit": "4bit", "4bit": "8bit"}
_OWN_WEIGHTS = "it trains the base's own weights, and quantized ones cannot train"
_NO_FORM = "PEFT has no form of it for quantized layers"
_PACKED = "PEFT takes the shape of the packed weight for the layer's"
_PACKED_TYPE = "PEFT makes A and B of the packed weight's type, which cannot train"
_NORMS = "it needs the norms of the base's weights, and 8bit layers give none after their first step"

REFUSED_ON: dict[str, dict[Quantization, str]] = {
    "last-layers": {"8bit": _OWN_WEIGHTS, "4bit": _OWN_WEIGHTS},
    "full": {"8bit": _OWN_WEIGHTS, "4bit": _OWN_WEIGHTS},
    "dora": {"8bit": _NORMS},
    "orthogonal": {"8bit": _PACKED_TYPE, "4bit": _PACKED_TYPE},
    "loha": {"4bit": _PACKED},
    "lokr": {"4bit": _PACKED},
    "c3a": {"8bit": _NO_FORM, "4bit": _NO_FORM},
    "deft": {"8bit": _NO_FORM, "4bit": _NO_FORM},
    "delora": {"8bit": _NO_FORM, "4bit": _NO_FORM},
    "glora": {"8bit": _NO_FORM, "4bit": _NO_FORM},
    "gralora": {"8bit": _NO_FORM, "4bit": _NO_FORM},
    "hra": {"8bit": _NO_FORM, "4bit": _NO_FORM},
    "peanut": {"8bit": _NO_FORM, "4bit": _NO_FORM},
    "psoft": {"8bit": _NO_FORM, "4bit": _NO_FORM},
    "supertuning": {"8bit": _NO_FORM, "4bit": _NO_FORM},
}
"""Method → the quantizations that it does not take, and why not; lora with use_dora is `dora`, with that beginning
`orthogonal`. A method that is not here takes both. The method matrix tests every line;
docs/matrix.md shows it."""
_NOT_WRITING = {
    "head": "'head' trains the head alone, and a language model writes with the base's own.",
}
"""Methods that do not go with tasks that write, and why not."""
_NOT_REWRITING = _NOT_WRITING | {
    "full": "'full' trains each module for itself, and encoder and decoder share their embeddings.",
    "prompt": "virtual tokens go into one input, and 'prompt' cannot tell the encoder's from the decoder's.",
    "p-tuning": "virtual tokens go into one input, and 'p-tuning' cannot tell the encoder's from the decoder's.",
}
"""Those that do not go with bases that have an encoder and a decoder."""
_KEYS = {"dora": "use_dora", "orthogonal": "init_lora_weights"}


def refusal(method: str, quantization: Quantization | None) -> str:
    """Why `method`, a name as in `REFUSED_ON`, does not go with a base in `quantization`; empty where it does."""
    reason = REFUSED_ON.get(method, {}).get(quantization) if quantization else None
    return f"'{method}' does not go with a base in {quantization}: {reason}." if reason else ""


_NOT_STARTING = {
    "head": "'head' has no delta that could begin with another's.",
    "adalora": "'adalora' shares its ranks out while it trains, and one that is trained has given most of them away.",
}
"""Methods that cannot begin with the weights of a published adapter, and why not."""


def check_compatibility(recipe: Recipe, errors: ErrorCollector) -> None:
    """Note every key that cannot stand beside what the recipe says elsewhere."""
    for issue in _clashes(recipe):
        errors.add(issue.message, key=issue.key, hint=issue.hint)


def _clashes(recipe: Recipe) -> Iterator[ValidationIssue]:
    if recipe.base.quantization:
        yield from _against(recipe.base.quantization, recipe)
    if reason := _not_going_with(recipe.task).get(recipe.method.type):
        yield ValidationIssue(reason, key="method.type", hint="Take lora, or another method.")
    if recipe.method.start_from and (reason := _NOT_STARTING.get(recipe.method.type)):
        yield ValidationIssue(reason, key="method.start_from", hint="Take it out, or take another method.")
    if recipe.training.packing:
        yield from _against_packing(recipe)
    if recipe.training.torch_compile:
        yield from _against_compiling(recipe)
    if _trains_tokens(recipe.method) and recipe.task.type != "causal-lm":
        message = f"embeddings of single tokens train for causal-lm, not for {recipe.task.type}."
        yield ValidationIssue(message, key="method.trainable_token_indices", hint="Take it out.")
    if recipe.training.distributed in SHARDING:
        for reason in _needing_the_whole_base(recipe):
            yield ValidationIssue(
                reason, key="training.distributed", hint="Take ddp: each process holds the whole base."
            )


def _not_going_with(task: TaskSection) -> Mapping[str, str]:
    """Methods that do not go with a task, and why not; an objective that is not decided yet is told later."""
    if isinstance(task, Translation | Summarization):
        return _NOT_REWRITING
    if isinstance(task, DomainAdaptation) and task.objective != "causal-lm":
        return {"head": _NOT_WRITING["head"]}
    return _NOT_WRITING if isinstance(task, CausalLm | Preference | DomainAdaptation) else {}


def _trains_tokens(method: MethodSection) -> bool:
    return isinstance(method, Lora) and bool(method.trainable_token_indices)


def _needing_the_whole_base(recipe: Recipe) -> Iterator[str]:
    """What cannot be where each process holds a part of the base, and why not."""
    engine, task = recipe.training.distributed, recipe.task
    if task.type == "preference":
        yield "what the base makes of each answer is computed apart from training, where no process has all of it."
    compares = getattr(task, "scored_by", "perplexity") != "perplexity"
    if compares or task.type in SCORED_BY_WRITING:
        yield f"{task.type} is scored by what is written, and each process holds a part of the base."
    if _trains_tokens(recipe.method):
        yield "PEFT takes rows of whole embeddings, and each process holds a part of them."
    if recipe.method.type == "adalora":
        yield "adalora weighs the directions of whole layers, and each process holds a part of them."
    if recipe.base.quantization:
        yield f"{engine} cannot share out a base in {recipe.base.quantization}."
    if recipe.training.torch_compile:
        yield f"{engine} takes layers apart that torch.compile has compiled as they are."


def _against_compiling(recipe: Recipe) -> Iterator[ValidationIssue]:
    if recipe.training.fused_lora:
        message = "torch.compile makes kernels of PEFT's layers in the place of the fused function."
        yield ValidationIssue(message, key="training.fused_lora", hint="Take one of the two out.")


def _against_packing(recipe: Recipe) -> Iterator[ValidationIssue]:
    if getattr(recipe.task, "objective", None) == "masked-lm":
        message = "masked tokens are found with all that is beside them, so each text needs a row of its own."
        yield ValidationIssue(message, key="training.packing", hint="Take it out.")
    elif not isinstance(recipe.task, CausalLm | DomainAdaptation):
        message = f"each text of {recipe.task.type} needs a row of its own."
        yield ValidationIssue(message, key="training.packing", hint="Take it out.")
    upper = recipe.method.type == "last-layers" or getattr(recipe.method, "layers_to_transform", None) is not None
    if upper and recipe.training.frozen_cache:
        message = "what frozen layers make of each text is kept text by text, and packed texts share rows."
        hint = "Take it out, or keep nothing: training.frozen_cache: null."
        yield ValidationIssue(message, key="training.packing", hint=hint)


def _against(quantization: Quantization, recipe: Recipe) -> Iterator[ValidationIssue]:
    kind, other = _kind(recipe.method), _OTHER[quantization]
    if reason := refusal(kind, quantization):
        key = f"method.{_KEYS.get(kind, 'type')}"
        instead = "lora" if refusal(kind, other) else f"lora or {other}"
        yield ValidationIssue(reason, key=key, hint=f"Take {instead}, or take base.quantization out.")


def _kind(method: MethodSection) -> str:
    if isinstance(method, Lora) and method.use_dora:
        return "dora"
    return "orthogonal" if isinstance(method, Lora) and method.init_lora_weights == "orthogonal" else method.type

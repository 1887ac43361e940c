"""Time single training steps, compared with a limit: one forward and one activation backward of the base model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.bench.processes import call_in_process
from peftlab.bench.validation import check_setups
from peftlab.errors import ErrorCollector
from peftlab.recipe import Recipe

LIMIT = "limit"
COMPILED, COMPILING = "torch.compile", {"training.torch_compile": True, "training.fused_lora": None}
"""The recipe with torch.compile instead of peftlab's own functions."""
PRECISIONS: dict[str, dict[str, Any]] = {"fp32": {"training.bf16": False}, "bf16": {"training.bf16": True}}
DROPOUTS: dict[str, dict[str, Any]] = {
    "none": {"training.base_dropout": False, "method.lora_dropout": 0.0},
    "base's and LoRA's": {"training.base_dropout": True, "method.lora_dropout": 0.1},
}


@dataclass(frozen=True)
class StepTime:
    """The time of a training step in one setup (`way`); `ratio` is relative to the limit in the same precision.

    The limit is the frozen base model alone, with the same base dropout; the other setups add adapter, head, gradient
    clipping and AdamW. `seconds` and `ratio` are medians over rounds in which every setup took one step.
    """

    precision: str
    dropout: str
    way: str
    ratio: float
    seconds: float


def time_steps(
    recipe_path: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    batch: int = 32,
    tokens: int = 64,
    num_repeats: int = 10,
    device: str = "auto",
    compiled: bool = False,
) -> list[StepTime]:
    """Time training steps of a recipe: the limit, plain PEFT and peftlab, for each precision and dropout.

    The measurement runs in a new process, on random tokens. In bf16, plain PEFT uses autocast of fp32 weights as
    Trainer does, and the limit has bfloat16 weights.

    Args:
        recipe_path: The recipe, a YAML file.
        overrides: Dotted recipe keys → values.
        batch: Rows of a batch.
        tokens: Tokens of a row, at most the maximum length of the base model.
        num_repeats: Number of measured steps of each setup, after two warm-up steps.
        device: auto, cpu, cuda or mps.
        compiled: Whether to measure torch.compile too; the time of compilation is not counted.

    Raises:
        RecipeError: the recipe or the data cannot be used.
        BaseNotFoundError: the base model was not found.
        PeftlabError: the process failed.
    """
    settings: list[dict[str, Any]] = [
        {
            "precision": precision,
            "dropout": dropout,
            "overrides": {**(overrides or {}), **precision_keys, **dropout_keys},
        }
        for precision, precision_keys in PRECISIONS.items()
        for dropout, dropout_keys in DROPOUTS.items()
    ]
    _check_unquantized(check_setups(recipe_path, [setting["overrides"] for setting in settings]))
    result = call_in_process(
        "peftlab.bench.step_worker",
        "step_times",
        recipe_path=str(recipe_path),
        settings=settings,
        batch=batch,
        tokens=tokens,
        num_repeats=num_repeats,
        device=device,
        compiled=compiled,
    )
    return [StepTime(**fields) for fields in result.value]


def _check_unquantized(recipe: Recipe) -> None:
    """Refuse a quantized base model, because the limit and plain PEFT are measured in fp32 and bf16."""
    with ErrorCollector() as errors:
        if recipe.base.quantization:
            hint = "Use --only runs, or -o base.quantization=null."
            errors.add("single steps cannot be measured on a quantized base model.", key="base.quantization", hint=hint)

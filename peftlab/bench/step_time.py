"""The time of one training step, beside the least it can take: one forward and one activation backward of the base."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.bench.processes import measure_call
from peftlab.bench.validation import check_ways
from peftlab.errors import ErrorCollector
from peftlab.recipe import Recipe

LIMIT = "limit"
COMPILED, COMPILING = "torch.compile", {"training.torch_compile": True, "training.fused_lora": None}
"""The recipe with torch.compile in the place of our own functions."""
PRECISIONS: dict[str, dict[str, Any]] = {"fp32": {"training.bf16": False}, "bf16": {"training.bf16": True}}
DROPOUTS: dict[str, dict[str, Any]] = {
    "none": {"training.base_dropout": False, "method.lora_dropout": 0.0},
    "base's and LoRA's": {"training.base_dropout": True, "method.lora_dropout": 0.1},
}


@dataclass(frozen=True)
class StepTime:
    """A step in one way; `ratio` is to the limit in the same precision, with the base's dropout where the way has it.

    The limit is the frozen base alone; the other ways add delta, head, clipping and AdamW. Both numbers are medians
    over rounds in which every way took one step.
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
    rounds: int = 10,
    device: str = "auto",
    compiled: bool = False,
) -> list[StepTime]:
    """Steps of the recipe's base and method: the limit, plain PEFT and peftlab, by precision and dropout.

    Measured in a fresh process, on random tokens. In bf16, plain PEFT runs as Trainer has it (autocast of fp32
    weights), and the limit with the weights themselves in bfloat16.

    Args:
        recipe_path: The recipe, a YAML file.
        overrides: Dotted recipe keys → values.
        batch: Inputs in a batch.
        tokens: Tokens of each input; at most what the base takes.
        rounds: How often each way takes a step, after two that do not count.
        device: auto, cpu, cuda or mps.
        compiled: Also through torch.compile; what compiling takes does not count.

    Raises:
        RecipeError: the recipe or the data cannot be used.
        BaseNotFoundError: the base model is nowhere.
        PeftlabError: the process failed.
    """
    settings: list[dict[str, Any]] = [
        {"precision": precision, "dropout": dropout, "overrides": {**(overrides or {}), **keys, **more}}
        for precision, keys in PRECISIONS.items()
        for dropout, more in DROPOUTS.items()
    ]
    _check_whole(check_ways(recipe_path, [setting["overrides"] for setting in settings]))
    measured = measure_call(
        "peftlab.bench.step_worker",
        "step_times",
        recipe_path=str(recipe_path),
        settings=settings,
        batch=batch,
        tokens=tokens,
        rounds=rounds,
        device=device,
        compiled=compiled,
    )
    return [StepTime(**told) for told in measured.value]


def _check_whole(recipe: Recipe) -> None:
    """Refuse a quantized base: the limit and plain PEFT are measured in fp32 and bf16."""
    with ErrorCollector() as errors:
        if recipe.base.quantization:
            hint = "Take --only runs, or -o base.quantization=null."
            errors.add("single steps are not measured on a quantized base.", key="base.quantization", hint=hint)

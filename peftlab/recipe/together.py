"""What one section of a recipe forbids in another: told with its line, before anything is loaded."""

from collections.abc import Iterator

from peftlab.errors import Problem, Problems
from peftlab.recipe.schema import Lora, Quantization, Recipe

REFUSED_ON: dict[str, dict[Quantization, str]] = {
    "last-layers": dict.fromkeys(("8bit", "4bit"), "it trains the base's own weights, and quantized ones cannot train"),
}
"""Method → quantizations that it does not take, and why. A method that is not here takes both: the matrix
(tests/test_method_matrix.py) tries every one, and docs/matrix.md shows what came of it."""


def check_together(recipe: Recipe, problems: Problems) -> None:
    """Note every key that cannot stand beside what the recipe says elsewhere."""
    if recipe.base.quantization:
        for problem in _against_quantization(recipe, recipe.base.quantization):
            problems.add(problem.message, key=problem.key, hint=problem.hint)


def _against_quantization(recipe: Recipe, quantization: Quantization) -> Iterator[Problem]:
    method, training = recipe.method, recipe.training
    if reason := REFUSED_ON.get(method.type, {}).get(quantization):
        hint = "Take lora, or take base.quantization out."
        yield Problem(f"'{method.type}' does not go with a base in {quantization}: {reason}.", key="method.type", hint=hint)
    if isinstance(method, Lora) and method.use_dora and quantization == "8bit":
        yield Problem(
            "DoRA needs the norms of the base's weights, which 8bit layers give only before their first step.",
            key="method.use_dora",
            hint="Take 4bit, or LoRA without it.",
        )
    if training.fused_lora:
        yield Problem(
            f"the fused function computes whole Linear layers, and those of this base are in {quantization}.",
            key="training.fused_lora",
            hint="Take the key out: PEFT computes them.",
        )
    if training.distributed in ("fsdp", "deepspeed"):
        yield Problem(
            f"{training.distributed} cannot share out a base in {quantization}.",
            key="training.distributed",
            hint="Take ddp, where each process holds the whole base.",
        )

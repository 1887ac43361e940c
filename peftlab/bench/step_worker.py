"""Time training steps of the limit, of plain PEFT and of peftlab in turn; runs in its own process."""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoModel

from peftlab.base import Base, choose_device, head_config, load_base, model_class
from peftlab.bench.step_time import COMPILED, COMPILING, LIMIT
from peftlab.bench.validation import build_fitted_task
from peftlab.methods import create_peft_model, peft_config
from peftlab.recipe import Recipe, read_recipe
from peftlab.tasks import Task
from peftlab.tuning.fast import fast_steps
from peftlab.tuning.precision import training_dtype

Step = Callable[[], None]
Inputs = dict[str, torch.Tensor]
WARM_UP = 2


def step_times(
    recipe_path: str,
    settings: list[dict[str, Any]],
    batch: int,
    tokens: int,
    num_repeats: int,
    device: str,
    compiled: bool,
) -> list[dict[str, Any]]:
    """Return the fields of a `StepTime` for each of `settings` (precision, dropout, overrides) and each setup."""
    results = []
    for setting in settings:
        recipe = read_recipe(recipe_path, setting["overrides"])
        bf16, dropout = setting["precision"] == "bf16", setting["dropout"] != "none"
        with ExitStack() as stack:
            steps = _steps(recipe, bf16, dropout, (batch, tokens), device, stack)
            if compiled:
                changed = read_recipe(recipe_path, {**setting["overrides"], **COMPILING})
                steps[COMPILED] = _method_step(changed, (batch, tokens), stack, device)
            seconds = _time_in_turn(steps, num_repeats, choose_device(device))
        setting_fields = {"precision": setting["precision"], "dropout": setting["dropout"]}
        results += [{**setting_fields, "way": way, **_median_fields(seconds, way)} for way in steps]
    return results


def _steps(
    recipe: Recipe, bf16: bool, dropout: bool, shape: tuple[int, int], device: str, stack: ExitStack
) -> dict[str, Step]:
    task = build_fitted_task(recipe)
    seed, base_dropout = recipe.training.seed, recipe.training.base_dropout
    base = load_base(recipe.base, task, seed=seed, device=device, dropout=base_dropout)
    inputs = _head_inputs(base, task, shape)
    return {
        LIMIT: _limit_step(recipe, base, _inputs(base, shape), bf16, dropout),
        "plain PEFT": _plain_step(recipe, base, task, inputs, bf16, dropout),
        "peftlab": _peftlab_step(recipe, base, task, inputs, bf16, stack),
    }


def _limit_step(recipe: Recipe, base: Base, inputs: Inputs, bf16: bool, dropout: bool) -> Step:
    """Make a step of one forward and one activation backward of the frozen base model, as Transformers loads it."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    model = _load_plain(AutoModel, recipe, base, dtype=dtype).requires_grad_(False).train(dropout)
    model.enable_input_require_grads()  # the gradient reaches the first layer, as LoRA there needs it

    def step() -> None:
        output = model(**inputs)[0]
        output.backward(torch.ones_like(output))

    return step


def _plain_step(recipe: Recipe, base: Base, task: Task, inputs: Inputs, bf16: bool, dropout: bool) -> Step:
    """Make a step of plain Transformers and PEFT; bf16 means autocast, as in Trainer."""
    plain_class = model_class(base.files.folder, task)
    model = _load_plain(plain_class, recipe, base, dtype=torch.float32, **head_config(task))
    adapted = get_peft_model(model, peft_config(base, recipe.method, task))
    return _training_step(adapted.train(dropout), task, inputs, bf16)


def method_steps(recipes: Mapping[str, str | Path], shape: tuple[int, int], stack: ExitStack) -> dict[str, Step]:
    """Make a training step of each recipe as `tune` runs it, without AdaLoRA's penalty; valid until `stack` closes.

    Inputs are random tokens of `shape` (batch, tokens).
    """
    return {name: _method_step(read_recipe(path), shape, stack) for name, path in recipes.items()}


def _method_step(recipe: Recipe, shape: tuple[int, int], stack: ExitStack, device: str = "auto") -> Step:
    task, settings = build_fitted_task(recipe), recipe.training
    base = load_base(recipe.base, task, seed=settings.seed, device=device, dropout=settings.base_dropout)
    bf16 = training_dtype(settings, base.model.device, recipe.base.quantization) == torch.bfloat16
    return _peftlab_step(recipe, base, task, _head_inputs(base, task, shape), bf16, stack)


def ratios_in_turn(steps: Mapping[str, Step], num_repeats: int) -> dict[str, float]:
    """Run the steps in turn → the median ratio of each step's time to that of the first."""
    first, seconds = next(iter(steps)), _time_in_turn(steps, num_repeats, choose_device())
    return {name: statistics.median(row[name] / row[first] for row in seconds) for name in steps}


def _load_plain(plain_class: Any, recipe: Recipe, base: Base, **options: Any) -> Any:
    """Load the base model with plain Transformers."""
    trust = recipe.base.trust_remote_code
    return plain_class.from_pretrained(base.files.folder, trust_remote_code=trust, **options).to(base.model.device)


def _peftlab_step(recipe: Recipe, base: Base, task: Task, inputs: Inputs, bf16: bool, stack: ExitStack) -> Step:
    """Make a step as `tune` runs it, with the dropout of the recipe; valid until `stack` closes."""
    model = create_peft_model(base, recipe.method, task).train()
    stack.enter_context(fast_steps(model, recipe, torch.bfloat16 if bf16 else torch.float32, inputs))
    return _training_step(model, task, inputs, bf16)


def _training_step(model: torch.nn.Module, task: Task, inputs: Inputs, bf16: bool) -> Step:
    """Make a step of forward, a cheap loss, backward, gradient clipping and AdamW."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    device = trained[0].device.type

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            output = model(**inputs)
        task.head.logits(output).float().square().mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _inputs(base: Base, shape: tuple[int, int]) -> Inputs:
    """Make random inputs without padding, such as tokens."""
    return base.inputs.random_batch(base.model, shape[0], min(shape[1], base.max_length))


def _head_inputs(base: Base, task: Task, shape: tuple[int, int]) -> Inputs:
    """Make random inputs of the base with its head."""
    inputs = _inputs(base, shape)
    return inputs | task.head.random_extra_inputs(base.inputs.mask(inputs))


def _time_in_turn(steps: Mapping[str, Step], num_repeats: int, device: torch.device) -> list[dict[str, float]]:
    """Return the seconds of one step of each setup, one row per round."""
    rows = [{way: _time(step, device) for way, step in steps.items()} for _ in range(WARM_UP + num_repeats)]
    return rows[WARM_UP:]


def _time(step: Step, device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _median_fields(seconds: list[dict[str, float]], way: str) -> dict[str, float]:
    ratio = statistics.median(row[way] / row[LIMIT] for row in seconds)
    return {"ratio": ratio, "seconds": statistics.median(row[way] for row in seconds)}

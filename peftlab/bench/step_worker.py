"""Training steps of the limit, of plain PEFT and of peftlab, taken in turn; runs in a process of its own."""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import get_peft_model
from transformers import AutoModel

from peftlab.base import Base, choose_device, head_config, load_base
from peftlab.bench.step_time import COMPILED, COMPILING, LIMIT
from peftlab.bench.validation import fitted_task
from peftlab.methods import adapt, peft_config
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
    rounds: int,
    device: str,
    compiled: bool,
) -> list[dict[str, Any]]:
    """The fields of a `StepTime` for each of `settings` (precision, dropout, overrides) and each way."""
    told = []
    for setting in settings:
        recipe = read_recipe(recipe_path, setting["overrides"])
        bf16, dropout = setting["precision"] == "bf16", setting["dropout"] != "none"
        with ExitStack() as stack:
            steps = _steps(recipe, bf16, dropout, (batch, tokens), device, stack)
            if compiled:
                changed = read_recipe(recipe_path, {**setting["overrides"], **COMPILING})
                steps[COMPILED] = _method_step(changed, (batch, tokens), stack, device)
            rows = _in_turn(steps, rounds, choose_device(device))
        named = {"precision": setting["precision"], "dropout": setting["dropout"]}
        told += [{**named, "way": way, **_medians(rows, way)} for way in steps]
    return told


def _steps(
    recipe: Recipe, bf16: bool, dropout: bool, shape: tuple[int, int], device: str, stack: ExitStack
) -> dict[str, Step]:
    task = fitted_task(recipe)
    seed, own_dropout = recipe.training.seed, recipe.training.base_dropout
    base = load_base(recipe.base, task, seed=seed, device=device, dropout=own_dropout)
    inputs = _inputs(base, shape)
    return {
        LIMIT: _limit_step(recipe, base, inputs, bf16, dropout),
        "plain PEFT": _plain_step(recipe, base, task, inputs, bf16, dropout),
        "peftlab": _peftlab_step(recipe, base, task, inputs, bf16, stack),
    }


def _limit_step(recipe: Recipe, base: Base, inputs: Inputs, bf16: bool, dropout: bool) -> Step:
    """One forward and one activation backward of the frozen base, as Transformers loads it."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    model = _loaded(AutoModel, recipe, base, dtype=dtype).requires_grad_(False).train(dropout)
    model.enable_input_require_grads()  # the gradient goes down to the first layer, as LoRA there needs it

    def step() -> None:
        output = model(**inputs)[0]
        output.backward(torch.ones_like(output))

    return step


def _plain_step(recipe: Recipe, base: Base, task: Task, inputs: Inputs, bf16: bool, dropout: bool) -> Step:
    """Transformers and PEFT alone, in bf16 by autocast as Trainer does; without dropout where there is to be none."""
    model = _loaded(getattr(transformers, task.auto_class), recipe, base, dtype=torch.float32, **head_config(task))
    adapted = get_peft_model(model, peft_config(base, recipe.method, task))
    return _training_step(adapted.train(dropout), task, inputs, bf16)


def method_steps(recipes: Mapping[str, str | Path], shape: tuple[int, int], stack: ExitStack) -> dict[str, Step]:
    """A training step of each recipe as `tune` takes it, until `stack` closes, but for AdaLoRA's penalty.

    Inputs are random tokens: `shape` is (batch, tokens).
    """
    return {name: _method_step(read_recipe(path), shape, stack) for name, path in recipes.items()}


def _method_step(recipe: Recipe, shape: tuple[int, int], stack: ExitStack, device: str = "auto") -> Step:
    task, settings = fitted_task(recipe), recipe.training
    base = load_base(recipe.base, task, seed=settings.seed, device=device, dropout=settings.base_dropout)
    bf16 = training_dtype(settings, base.model.device, recipe.base.quantization) == torch.bfloat16
    return _peftlab_step(recipe, base, task, _inputs(base, shape), bf16, stack)


def ratios_in_turn(steps: Mapping[str, Step], rounds: int) -> dict[str, float]:
    """Median time of each step over that of the first, taken in turn."""
    first, rows = next(iter(steps)), _in_turn(steps, rounds, choose_device())
    return {name: statistics.median(row[name] / row[first] for row in rows) for name in steps}


def _loaded(auto_class: Any, recipe: Recipe, base: Base, **options: Any) -> Any:
    """The base's files in plain Transformers, with nothing of ours."""
    trusted = recipe.base.trust_remote_code
    return auto_class.from_pretrained(base.files.folder, trust_remote_code=trusted, **options).to(base.model.device)


def _peftlab_step(recipe: Recipe, base: Base, task: Task, inputs: Inputs, bf16: bool, stack: ExitStack) -> Step:
    """As `tune` makes and runs it, until `stack` closes; dropout is as the recipe says."""
    model = adapt(base, recipe.method, task).train()
    stack.enter_context(fast_steps(model, recipe, torch.bfloat16 if bf16 else torch.float32, inputs))
    return _training_step(model, task, inputs, bf16)


def _training_step(model: torch.nn.Module, task: Task, inputs: Inputs, bf16: bool) -> Step:
    """Forward, a loss that costs next to nothing, backward, clipping and AdamW."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    device = inputs["input_ids"].device.type

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            output = model(**inputs)
        task.logits(output).float().square().mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _inputs(base: Base, shape: tuple[int, int]) -> Inputs:
    """Random tokens without padding: the time does not depend on which."""
    batch, tokens = shape[0], min(shape[1], base.max_length)
    ids = torch.randint(base.model.config.vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids.to(base.model.device), "attention_mask": torch.ones_like(ids).to(base.model.device)}


def _in_turn(steps: Mapping[str, Step], rounds: int, device: torch.device) -> list[dict[str, float]]:
    """Seconds of one step of each way, a row for each round."""
    rows = [{way: _seconds(step, device) for way, step in steps.items()} for _ in range(WARM_UP + rounds)]
    return rows[WARM_UP:]


def _seconds(step: Step, device: torch.device) -> float:
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _medians(rows: list[dict[str, float]], way: str) -> dict[str, float]:
    ratio = statistics.median(row[way] / row[LIMIT] for row in rows)
    return {"ratio": ratio, "seconds": statistics.median(row[way] for row in rows)}

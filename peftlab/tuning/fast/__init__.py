"""Fast training steps with the same results: precision, LoRA, dropout, attention and trainable parameters.

`torch.compile` can replace our LoRA, dropout and attention. Each is a context manager that changes how the model
computes, and restores it afterwards. A whole run takes about a quarter of the time of plain PEFT on a CPU (decisions
0011 and 0015, benchmarks/results/2026-11-29-tuning-speed-*.md).
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from peft import PeftModel

from peftlab.recipe import Recipe
from peftlab.tuning.fast.attention import short_sequence_attention
from peftlab.tuning.fast.compilation import compiled_layers
from peftlab.tuning.fast.dropout import fast_dropout
from peftlab.tuning.fast.lora import fused_lora
from peftlab.tuning.fast.trainable_parameters import trainable_parameters_only
from peftlab.tuning.precision import frozen_weights_in

__all__ = ["fast_steps"]


@contextmanager
def fast_steps(
    model: PeftModel, recipe: Recipe, dtype: torch.dtype, inputs: Mapping[str, torch.Tensor]
) -> Iterator[None]:
    """Inside the block, `model` uses the fastest functions for its device that the recipe allows.

    Args:
        model: The model to train.
        recipe: Its training section can turn parts off.
        dtype: The dtype of frozen weights; run the model under autocast to it.
        inputs: Any inputs of the model, for one forward pass.
    """
    with ExitStack() as stack:
        if not recipe.training.torch_compile:
            stack.enter_context(_custom_functions(model, recipe, inputs))
        stack.enter_context(frozen_weights_in(model, dtype))
        stack.enter_context(trainable_parameters_only(model))
        if recipe.training.torch_compile:
            with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
                stack.enter_context(compiled_layers(model, inputs))
        yield


@contextmanager
def _custom_functions(model: PeftModel, recipe: Recipe, inputs: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Our own LoRA, dropout and attention, each on the devices where it is faster."""
    on_cpu = model.device.type == "cpu"  # on other devices torch's own functions are fast
    fused = recipe.training.fused_lora
    with ExitStack() as stack:
        if on_cpu if fused is None else fused:
            stack.enter_context(fused_lora(model, inputs))
        if on_cpu:
            masks = stack.enter_context(fast_dropout(model, recipe.training.seed))
            if recipe.base.attn_implementation is None:
                stack.enter_context(short_sequence_attention(model.get_base_model(), masks))
        yield

"""What makes a training step fast without changing what is learnt: precision, LoRA, dropout, attention, walks.

Each is a context in which the model computes otherwise, and after which it is as it was.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from peft import PeftModel

from peftlab.recipe import Recipe
from peftlab.tuning.fast.attention import short_attention
from peftlab.tuning.fast.dropout import cheap_dropout
from peftlab.tuning.fast.lora import fused_lora
from peftlab.tuning.fast.walks import short_walks
from peftlab.tuning.precision import frozen_weights_in

__all__ = ["fast_steps"]


@contextmanager
def fast_steps(
    model: PeftModel, recipe: Recipe, dtype: torch.dtype, inputs: Mapping[str, torch.Tensor]
) -> Iterator[None]:
    """Inside the block, `model` computes in the fastest way known for its device, as far as the recipe lets it.

    Args:
        model: What trains.
        recipe: Says what may be otherwise.
        dtype: What frozen weights are in; run the model under autocast to it.
        inputs: Any inputs of the model, for one forward pass.
    """
    on_cpu = model.device.type == "cpu"  # elsewhere torch's own ways are fast
    fused = recipe.training.fused_lora
    with ExitStack() as stack:
        if on_cpu if fused is None else fused:
            stack.enter_context(fused_lora(model, inputs))
        if on_cpu:
            masks = stack.enter_context(cheap_dropout(model, recipe.training.seed))
            if recipe.base.attn_implementation is None:
                stack.enter_context(short_attention(model.get_base_model(), masks))
        stack.enter_context(frozen_weights_in(model, dtype))
        stack.enter_context(short_walks(model))
        yield

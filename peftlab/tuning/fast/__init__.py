"""What makes a training step fast without changing what is learnt: precision, LoRA, dropout, attention.

Each is a context in which the model computes otherwise, and after which it is as it was.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from peftlab.tuning.fast.attention import short_attention
from peftlab.tuning.fast.dropout import cheap_dropout
from peftlab.tuning.fast.lora import fused_lora
from peftlab.tuning.precision import frozen_weights_in
from peftlab.tuning.run import Run

__all__ = ["fast_steps"]


@contextmanager
def fast_steps(run: Run) -> Iterator[None]:
    """Inside the block, `run.model` computes in the run's dtype and in the fastest way known for its device."""
    settings, device = run.recipe.training, run.base.model.device
    on_cpu = device.type == "cpu"
    with ExitStack() as stack:
        if on_cpu if settings.fused_lora is None else settings.fused_lora:
            batch = run.task.collate(run.features[:1], run.base.tokenizer)
            inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
            stack.enter_context(fused_lora(run.model, inputs))
        if on_cpu:  # elsewhere torch's own are fast
            masks = stack.enter_context(cheap_dropout(run.model, settings.seed))
            if run.recipe.base.attn_implementation is None:
                stack.enter_context(short_attention(run.base.model, masks))
        stack.enter_context(frozen_weights_in(run.model, run.dtype))
        yield

"""The inputs of a head's output layer: on the frozen base, the features of a linear probe."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from peftlab.base import Base
from peftlab.base.pooled_model import pool
from peftlab.tasks import Feature, Task
from peftlab.tasks.inputs.encoding import ProgressCallback
from peftlab.tasks.prediction import longest_first, module_mode


@torch.no_grad()
def head_inputs(
    model: nn.Module,
    base: Base,
    task: Task,
    features: Sequence[Feature],
    *,
    batch_size: int = 32,
    on_progress: ProgressCallback = lambda done, total: None,
) -> list[Tensor]:
    """Compute the input of `base.output_layer` for each feature, in order, without dropout and in fp32 on the CPU.

    Args:
        model: `base.model`, or a PEFT model on it.
        base: The base with its head.
        task: The task of the head.
        features: What the model reads.
        batch_size: Features per batch; batches have features of similar length.
        on_progress: Called with the number of features that are done.

    Returns:
        (hidden,) per feature, or (tokens, hidden) without padding if the head predicts for each token.

    Raises:
        ValueError: the base has no new head with a Linear.
    """
    if base.output_layer is None:
        raise ValueError(f"the head for {task.type} has no Linear of its own")
    found: dict[int, Tensor] = {}
    order = longest_first(features)
    with module_mode(model, training=False):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            found |= zip(chosen, _batch_inputs(model, base, task, [features[i] for i in chosen]), strict=True)
            on_progress(len(found), len(order))
    return [found[i] for i in range(len(order))]


def _batch_inputs(model: nn.Module, base: Base, task: Task, features: Sequence[Feature]) -> list[Tensor]:
    batch = task.head.collate(features, base.inputs)
    batch.pop("labels", None)
    captured = _capture_inputs(model, base, {name: tensor.to(base.model.device) for name, tensor in batch.items()})
    mask = base.inputs.mask(batch)
    if task.head.poolings and captured.dim() == 3:  # decoders compute logits for all tokens, and take the last ones
        captured = pool(captured, mask, "last")
    return task.head.split(captured, mask)


def _capture_inputs(model: nn.Module, base: Base, batch: dict[str, Tensor]) -> Tensor:
    """The input of the output layer in a forward pass, in fp32 on the CPU."""
    captured: list[Tensor] = []
    layer = base.model.get_submodule(base.output_layer or "")
    hook = layer.register_forward_pre_hook(lambda module, args: captured.append(args[0].float().cpu()))
    try:
        model(**batch)
    finally:
        hook.remove()
    return captured[-1]

"""`parameters()` without frozen parameters, because Trainer iterates over all of them several times per step.

Trainer calls `parameters()` to clip and to reset gradients, and `train()` on every module in each batch. On a small
base this takes one or two milliseconds, which is as long as a step of `method: head`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def trainable_parameters_only(model: nn.Module) -> Iterator[None]:
    """Inside the block `model` is in training mode, `parameters()` yields trainable ones, and `train()` does nothing.

    Both methods are replaced on the instance: 1–2 ms of each step (decision 0015, "short walks").
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    was_training, original_train = model.training, model.train
    original_train()  # all modules: those of a model that was just loaded may be in different modes

    def parameters(recurse: bool = True) -> Iterator[nn.Parameter]:
        return iter(trainable)

    def train(mode: bool = True) -> nn.Module:
        return model if mode == model.training else original_train(mode)

    model.parameters, model.train = parameters, train  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.parameters, model.train
        original_train(was_training)

"""Short walks through the model: Trainer walks through all of it several times a step, to find what little trains.

To clip gradients and to forget them it asks for every parameter, and at each batch it sets every module to training. On
a small base that takes a millisecond or two, as long as a step of the head alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def trainable_parameters_only(model: nn.Module) -> Iterator[None]:
    """Inside the block `model` is in training, `parameters()` gives only what trains, and `train()` does no more."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before, train = model.training, model.train
    train()  # all of it: a model just loaded may be in training, and the base in it not

    def parameters(recurse: bool = True) -> Iterator[nn.Parameter]:
        return iter(trained)

    def train_once(mode: bool = True) -> nn.Module:
        return model if mode == model.training else train(mode)

    model.parameters, model.train = parameters, train_once  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.parameters, model.train
        train(before)

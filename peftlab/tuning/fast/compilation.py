"""Training steps through `torch.compile`, an alternative to our own functions for LoRA, dropout and attention.

Each layer of the base is compiled separately with dynamic lengths, so that equal layers are compiled once. Predictions
are not compiled: their scores stay the same, and generation has inputs that grow.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from peftlab.errors import ErrorCollector
from peftlab.imports import LazyModule

dynamo, inductor = LazyModule("torch._dynamo"), LazyModule("torch._inductor")  # importing the compiler takes a second

OPTIONS: dict[str, Any] = {"dynamic": True}
MAX_MESSAGE_LINES = 2  # the compiler's name and its message; many lines follow


@contextmanager
def compiled_layers(model: PeftModel, inputs: Mapping[str, Tensor]) -> Iterator[int]:
    """Inside the block, the base's layers are compiled for steps with gradients; yields the number of layers.

    Only `training.torch_compile: true` enters this block. `forward` is replaced on the layers, so that PEFT's and
    Trainer's references to the modules stay valid (decision 0026).

    Args:
        model: The model to train.
        inputs: Any inputs of the model; one forward pass tests whether this machine can compile it.

    Raises:
        RecipeError: this machine cannot compile the model.
    """
    base = model.get_base_model()
    layers = _repeated_layers(base) or [base]
    previous = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = _compile_for_training(layer.forward)
    try:
        _test_compilation(model, inputs)
        yield len(layers)
    finally:
        for layer, forward in zip(layers, previous, strict=True):
            vars(layer).pop("forward", None)  # another context inside the block may have removed it
            if forward:
                layer.forward = forward


def _repeated_layers(base: nn.Module) -> list[Any]:
    """The layers in each of the base's outermost module lists, for example of an encoder and a decoder."""
    lists = {name: module for name, module in base.named_modules() if isinstance(module, nn.ModuleList)}
    outer = [module for name, module in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    return [layer for module in outer for layer in module]


def _compile_for_training(original: Any) -> Any:
    compiled = torch.compile(original, **OPTIONS)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else original)(*args, **kwargs)

    return forward


def _test_compilation(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    with ErrorCollector() as errors:
        try:
            model(**inputs)
        except (dynamo.exc.TorchDynamoException, inductor.exc.InductorError) as error:
            reason = " ".join(str(error).strip().splitlines()[:MAX_MESSAGE_LINES])
            message = f"torch.compile cannot compile this model here: {reason}"
            errors.add(message, key="training.torch_compile", hint="Remove it to use peftlab's own functions.")

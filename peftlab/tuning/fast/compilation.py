"""Training steps through `torch.compile`: another way to make them fast, in the place of our own functions.

Each of the base's layers is compiled for itself, with lengths left open, so that alike ones compile once. Predictions
are computed as ever: what they are scored by stays the same, and what is written has inputs that grow.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from peftlab.errors import ErrorCollector

OPTIONS: dict[str, Any] = {"dynamic": True}
TOLD_LINES = 2  # the compiler's name and what it said; many follow


@contextmanager
def compiled_layers(model: PeftModel, inputs: Mapping[str, Tensor]) -> Iterator[int]:
    """Inside the block, the base's layers are compiled wherever gradients are; gives how many are.

    Args:
        model: What trains.
        inputs: Any inputs of it; one pass with them shows whether this machine can compile it.

    Raises:
        RecipeError: it cannot.
    """
    base = model.get_base_model()
    layers = _repeated(base) or [base]
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = _compiled(layer.forward)
    try:
        _try_out(model, inputs)
        yield len(layers)
    finally:
        for layer, own in zip(layers, before, strict=True):
            vars(layer).pop("forward", None)  # what took its place in the block may have taken it out
            if own:
                layer.forward = own


def _repeated(base: nn.Module) -> list[Any]:
    """The layers in each of the base's outermost lists: an encoder's, and a decoder's beside it."""
    lists = {name: module for name, module in base.named_modules() if isinstance(module, nn.ModuleList)}
    outer = [found for name, found in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    return [layer for found in outer for layer in found]


def _compiled(plain: Any) -> Any:
    compiled = torch.compile(plain, **OPTIONS)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else plain)(*args, **kwargs)

    return forward


def _try_out(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import
    from torch._inductor.exc import InductorError

    with ErrorCollector() as errors:
        try:
            model(**inputs)
        except (TorchDynamoException, InductorError) as error:
            why = " ".join(str(error).strip().splitlines()[:TOLD_LINES])
            message = f"torch.compile cannot compile this model here: {why}"
            errors.add(message, key="training.torch_compile", hint="Take it out: peftlab's own functions compute.")

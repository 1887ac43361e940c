"""Training in less memory; what not every base and device has is refused in words before training."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from peftlab.base.quantization import DEVICES
from peftlab.errors import ErrorCollector
from peftlab.recipe import TrainingSection

OF_BITSANDBYTES = ("adamw_8bit", "adamw_bnb_8bit", "lion_8bit", "lion_32bit")
"""Its optimizers, beside the paged ones, whose names tell."""


def check_optimizer(settings: TrainingSection, device: torch.device, errors: ErrorCollector) -> None:
    """Note an optimizer that `device` does not have. bitsandbytes' paged ones run on a CPU, but page nothing there."""
    name = settings.optim
    if name.startswith("paged_") and device.type != "cuda":
        message = f"'{name}' moves its state out of a GPU that is full, and this run computes on {device.type}."
        unpaged = name.removeprefix("paged_").replace("32bit", "8bit")
        errors.add(message, key="training.optim", hint=f"Take {unpaged}.")
    elif name in OF_BITSANDBYTES and device.type not in DEVICES:
        message = f"'{name}' is of bitsandbytes, which computes on {' and '.join(DEVICES)}, not on {device.type}."
        errors.add(message, key="training.optim", hint="Take adafactor, or --device cpu.")


def check_checkpointing(settings: TrainingSection, model: PreTrainedModel) -> None:
    """Refuse gradient checkpointing where the architecture has none.

    Raises:
        RecipeError: it has none.
    """
    with ErrorCollector() as errors:
        if settings.gradient_checkpointing and not model.supports_gradient_checkpointing:
            message = f"Transformers' '{model.config.model_type}' cannot compute its layers again going backward."
            hint = "Take it out. Smaller batches with gradient_accumulation_steps spare memory as well."
            errors.add(message, key="training.gradient_checkpointing", hint=hint)


@contextmanager
def gradient_checkpointing(model: PreTrainedModel, *, enabled: bool) -> Iterator[None]:
    """Inside the block, if `enabled`, what happens in a layer is not kept but computed again going backward.

    Trainer would do so too, but with gradients of the embeddings' output, for the sake of an older way to checkpoint:
    layers below the lowest adapted one would be gone through backward in vain.
    """
    if not enabled:
        yield
        return
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()


def release_freed_memory() -> None:
    """Hand back to the system what freed tensors of ever other sizes have left, where the C library is glibc.

    It keeps such holes for later: on a small base as much as scoring needs (decision 0030).
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(ctypes.c_size_t(0))

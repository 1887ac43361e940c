"""Training with less memory: optimizers, gradient checkpointing, and freed memory."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from peftlab.base.quantization import DEVICES
from peftlab.errors import ErrorCollector
from peftlab.recipe import TrainingSection

BITSANDBYTES_OPTIMIZERS = ("adamw_8bit", "adamw_bnb_8bit", "lion_8bit", "lion_32bit")
"""The optimizers of bitsandbytes whose names do not begin with paged_."""


def check_optimizer(settings: TrainingSection, device: torch.device, errors: ErrorCollector) -> None:
    """Check that `device` supports the optimizer. Paged optimizers run on a CPU, but without any effect."""
    name = settings.optim
    if name.startswith("paged_") and device.type != "cuda":
        message = f"'{name}' moves its state out of a full GPU, and this run computes on {device.type}."
        unpaged = name.removeprefix("paged_").replace("32bit", "8bit")
        errors.add(message, key="training.optim", hint=f"Use {unpaged}.")
    elif name in BITSANDBYTES_OPTIMIZERS and device.type not in DEVICES:
        message = f"'{name}' is an optimizer of bitsandbytes, which needs {' or '.join(DEVICES)}, not {device.type}."
        errors.add(message, key="training.optim", hint="Use adafactor, or --device cpu.")


def check_checkpointing(settings: TrainingSection, model: PreTrainedModel) -> None:
    """Check that the architecture supports gradient checkpointing, if the recipe turns it on.

    Raises:
        RecipeError: it does not.
    """
    with ErrorCollector() as errors:
        if settings.gradient_checkpointing and not model.supports_gradient_checkpointing:
            message = f"Transformers' '{model.config.model_type}' does not support gradient checkpointing."
            hint = "Remove it. Smaller batches with gradient_accumulation_steps save memory too."
            errors.add(message, key="training.gradient_checkpointing", hint=hint)


@contextmanager
def gradient_checkpointing(model: PreTrainedModel, *, enabled: bool) -> Iterator[None]:
    """Inside the block, if `enabled`, activations inside a layer are recomputed in the backward pass, not saved.

    Trainer's own switch also turns on gradients of the embeddings, which only reentrant checkpointing needs: the
    backward pass would then run through all layers below the lowest trainable one.
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
    """Return the memory of freed tensors to the system, if the C library is glibc.

    glibc keeps the gaps between tensors of different sizes: 0.3 GB on a small base, as much as scoring needs (decision
    0030).
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(ctypes.c_size_t(0))

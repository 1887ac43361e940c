"""Ways to train in less memory that not every base and device has: refused in words before training."""

import torch
from transformers import PreTrainedModel

from peftlab.errors import Problems
from peftlab.quantization import DEVICES
from peftlab.recipe import TrainingSection

ON_BYTES = ("adamw_8bit", "adamw_bnb_8bit", "lion_8bit", "lion_32bit")
"""Optimizers of bitsandbytes, whose paged ones are told by their names."""


def check_optimizer(settings: TrainingSection, device: torch.device, problems: Problems) -> None:
    """Note an optimizer that `device` does not have. bitsandbytes' paged ones run on a CPU, but page nothing there."""
    name = settings.optim
    if name.startswith("paged_") and device.type != "cuda":
        message = f"'{name}' moves its state out of a GPU that is full, and this run computes on {device.type}."
        unpaged = name.removeprefix("paged_").replace("32bit", "8bit")
        problems.add(message, key="training.optim", hint=f"Take {unpaged}.")
    elif name in ON_BYTES and device.type not in DEVICES:
        message = f"'{name}' is of bitsandbytes, which computes on {' and '.join(DEVICES)}, not on {device.type}."
        problems.add(message, key="training.optim", hint="Take adafactor, or --device cpu.")


def check_checkpointing(settings: TrainingSection, model: PreTrainedModel) -> None:
    """Refuse gradient checkpointing where the architecture has none.

    Raises:
        RecipeError: it has none.
    """
    with Problems() as problems:
        if settings.gradient_checkpointing and not model.supports_gradient_checkpointing:
            message = f"Transformers' '{model.config.model_type}' cannot compute its layers again going backward."
            hint = "Take it out. Smaller batches with gradient_accumulation_steps spare memory as well."
            problems.add(message, key="training.gradient_checkpointing", hint=hint)

"""Choose the device that the base computes on."""

from peftlab.errors import DeviceNotFoundError
from peftlab.imports import torch


def choose_device(device: str = "auto") -> "torch.device":
    """The torch device of that name; `auto` takes cuda, mps or cpu, the first that is available.

    Raises:
        DeviceNotFoundError: this machine, or this torch, has no such device.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if device not in ("auto", *available):
        raise DeviceNotFoundError(
            f"torch {torch.__version__} finds no device '{device}' here. Available: {', '.join(available)}."
        )
    return torch.device(available[0] if device == "auto" else device)

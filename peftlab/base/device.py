"""Where the base computes."""

from typing import TYPE_CHECKING

from peftlab.errors import DeviceNotFoundError

if TYPE_CHECKING:
    import torch


def choose_device(device: str = "auto") -> "torch.device":
    """auto → cuda, mps or cpu, the first there is.

    Raises:
        DeviceNotFoundError: there is none of that name.
    """
    import torch

    there = ["cpu"]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    if torch.cuda.is_available():
        there.insert(0, "cuda")
    if device not in ("auto", *there):
        raise DeviceNotFoundError(
            f"no device '{device}' here, by torch {torch.__version__}. There: {', '.join(there)}."
        )
    return torch.device(there[0] if device == "auto" else device)

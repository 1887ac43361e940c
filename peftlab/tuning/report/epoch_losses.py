"""The mean training loss of each epoch, from Trainer's log."""

import math
from collections.abc import Mapping, Sequence

ROUNDING = 1e-6  # of the epoch in an entry of the log


def mean_epoch_losses(log: Sequence[Mapping[str, float]]) -> dict[int, float]:
    """Epoch → mean of the losses of its steps. An entry holds the mean loss of the steps since the entry before."""
    losses: dict[int, list[tuple[float, float]]] = {}
    last_step = 0.0
    for entry in log:
        if "loss" in entry:
            epoch = math.ceil(entry["epoch"] - ROUNDING)
            losses.setdefault(epoch, []).append((entry["loss"], entry["step"] - last_step))
            last_step = entry["step"]
    return {
        epoch: sum(loss * steps for loss, steps in entries) / sum(steps for _, steps in entries)
        for epoch, entries in losses.items()
    }

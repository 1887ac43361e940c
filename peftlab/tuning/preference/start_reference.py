"""Preference tuning that starts from an adapter: that adapter is the reference model."""

import torch
from peft import PeftModel

from peftlab.tasks import Task
from peftlab.tuning.warm_start import WarmStart


def start_as_reference(start: WarmStart, model: PeftModel, task: Task) -> dict[str, torch.Tensor]:
    """Copy the trainable parameters of `model`, which has the weights of `start`, if the task needs a reference.

    The task keeps the name of the adapter, so that later evaluations use the same reference.
    """
    if not task.outputs.needs_reference:
        return {}
    task.state["reference"] = [str(start.adapter), start.adapter.manifest.manifest_sha256]
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters() if tensor.requires_grad}

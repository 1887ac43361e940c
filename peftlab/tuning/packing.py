"""Check that several texts in one row of a batch have the loss they have in rows of their own; see `Inputs.pack`."""

import torch
from torch import Tensor

from peftlab.errors import ErrorCollector
from peftlab.tasks.prediction import module_mode
from peftlab.tuning.run import Run

TOLERANCE = 1e-4  # of the loss, in nats


def check_packing(run: Run) -> None:
    """Refuse packing where texts in one row do not cost what they cost alone.

    Raises:
        RecipeError: they do not, or the base takes no positions.
    """
    chosen = sorted(run.train_features, key=len)[:3]
    with ErrorCollector() as errors, module_mode(run.model, training=False), torch.inference_mode():
        try:
            together = _loss(run, run.base.inputs.pack(chosen, sum(map(len, chosen))))
        except TypeError:
            errors.add("this base takes no positions, so texts cannot be told apart.", key="training.packing")
            return
        alone = _loss(run, run.task.collate(chosen, run.base.inputs))
        if not abs(together - alone) <= TOLERANCE:  # also for NaN
            message = f"three texts in one row have a loss of {together:.4f}, and side by side {alone:.4f}."
            hint = "With this base and method texts see each other: take packing out."
            errors.add(message, key="training.packing", hint=hint)


def _loss(run: Run, batch: dict[str, Tensor]) -> float:
    labels = batch.pop("labels").to(run.model.device)
    output = run.model(**{name: tensor.to(run.model.device) for name, tensor in batch.items()})
    return float(run.task.loss(run.task.logits(output).float(), labels))

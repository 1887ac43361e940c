"""Test before training that packed texts have the same loss as texts in separate rows; see `Inputs.pack`."""

import torch
from torch import Tensor

from peftlab.errors import ErrorCollector
from peftlab.tasks.prediction import module_mode
from peftlab.tuning.run import Run

TOLERANCE = 1e-4  # of the loss, in nats


def check_packing(run: Run) -> None:
    """Compare the loss of three packed texts with that of the same texts in separate rows.

    Raises:
        RecipeError: the losses differ, or the base takes no position ids.
    """
    texts = sorted(run.train_features, key=len)[:3]
    with ErrorCollector() as errors, module_mode(run.model, training=False), torch.inference_mode():
        try:
            packed_loss = _loss(run, run.base.inputs.pack(texts, sum(map(len, texts))))
        except TypeError:
            errors.add("this base takes no position ids, so packed texts cannot be separated.", key="training.packing")
            return
        separate_loss = _loss(run, run.task.head.collate(texts, run.base.inputs))
        if not abs(packed_loss - separate_loss) <= TOLERANCE:  # also for NaN
            message = f"three texts have a loss of {packed_loss:.4f} packed, and {separate_loss:.4f} in separate rows."
            hint = "With this base and method, packed texts attend to each other: remove packing."
            errors.add(message, key="training.packing", hint=hint)


def _loss(run: Run, batch: dict[str, Tensor]) -> float:
    labels = batch.pop("labels").to(run.model.device)
    output = run.model(**{name: tensor.to(run.model.device) for name, tensor in batch.items()})
    return float(run.task.head.loss(run.task.head.logits(output).float(), labels))

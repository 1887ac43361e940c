"""Examples → predictions through a model: the one way, for validation, test and serving alike."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase

from peftlab.tasks.contract import Continuation, Feature, Task
from peftlab.tasks.tokenizing import Told, encode_examples

Outcome = torch.Tensor | Continuation
"""What comes of a feature: see `Task.outcome`; of one that is gone on with, its continuation."""
Forward = Callable[[Sequence[Feature]], list[torch.Tensor]]
"""How labelled features become outcomes: `forward` of one model, or a way to share its work out."""
Through = Callable[[Sequence[Feature]], Sequence[Outcome]]
"""How any features do."""


def predict_examples(
    task: Task,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Any],
    *,
    max_length: int,
    batch_size: int = 32,
    told: Told = lambda done, total: None,
) -> list[Any]:
    """Predictions in the order of `examples`; longer ones than `max_length` tokens go through in overlapping windows.

    `told` hears of features that went through the model.
    """
    features = encode_examples(task, tokenizer, examples, max_length=max_length, training=False)
    through = partial(forward, task, model, tokenizer, batch_size=batch_size, told=told)
    return predict_features(task, examples, features, through)


def predict_features(
    task: Task, examples: Sequence[Any], features: Sequence[Sequence[Feature]], through: Through
) -> list[Any]:
    """Predictions in the order of `examples`, of which the windows are encoded already."""
    outputs = iter(through([feature for windows in features for feature in windows]))
    return [
        task.decode(example, windows, cast(Any, [next(outputs) for _ in windows]))
        for example, windows in zip(examples, features, strict=True)
    ]


def with_reference(task: Task, features: Sequence[Sequence[Feature]], through_base: Through) -> list[list[Feature]]:
    """The features of each example, the labelled ones with what the bare base makes of them, if the task asks."""
    if not task.compares_with_base:
        return [list(windows) for windows in features]
    labelled = [feature for windows in features for feature in windows if feature.labels is not None]
    told = iter(through_base(labelled))
    return [
        [feature if feature.labels is None else task.refer(feature, cast(Any, next(told))) for feature in windows]
        for windows in features
    ]


@torch.inference_mode()
def forward(
    task: Task,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    features: Sequence[Feature],
    batch_size: int = 32,
    told: Told = lambda done, total: None,
) -> list[torch.Tensor]:
    """The task's outcome of each feature's logits: without padding, if it is one for each token.

    Features are sorted by length, so that a batch pads little, and the logits put back in order.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(features)), key=lambda i: len(features[i]))
    logits: list[torch.Tensor] = [torch.empty(0)] * len(features)
    with in_mode(model, training=False):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = task.collate([features[i] for i in chosen], tokenizer)
            labels = batch.pop("labels", None)
            output = task.logits(model(**{name: tensor.to(device) for name, tensor in batch.items()})).float()
            outcome = task.outcome(output, None if labels is None else labels.to(device)).cpu()
            for i, row, mask in zip(chosen, outcome, batch["attention_mask"], strict=True):
                logits[i] = row[mask.bool()] if task.per_token else row
            told(min(start + batch_size, len(order)), len(order))
    return logits


@contextmanager
def in_mode(model: torch.nn.Module, *, training: bool) -> Iterator[None]:
    """Inside the block `model` trains, or predicts; then it is again as it was."""
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)

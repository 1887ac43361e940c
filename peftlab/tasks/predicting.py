"""Examples → predictions through a model: the one way, for validation, test and serving alike."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from peftlab.tasks.contract import Feature, Task
from peftlab.tasks.tokenizing import Told, encode_examples

Forward = Callable[[Task, torch.nn.Module, PreTrainedTokenizerBase, Sequence[Feature], int, Told], list[torch.Tensor]]
"""How features become logits: `forward`, or a way to share the work out."""


def predict_examples(
    task: Task,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Any],
    *,
    max_length: int,
    batch_size: int = 32,
    told: Told = lambda done, total: None,
    through: Forward | None = None,
) -> list[Any]:
    """Predictions in the order of `examples`; longer ones than `max_length` tokens go through in overlapping windows.

    `told` hears of features that went through the model.
    """
    features = encode_examples(task, tokenizer, examples, max_length=max_length, training=False)
    return predict_features(task, model, tokenizer, examples, features, batch_size=batch_size, told=told)


def predict_features(
    task: Task,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Any],
    features: Sequence[Sequence[Feature]],
    *,
    batch_size: int = 32,
    told: Told = lambda done, total: None,
    through: Forward | None = None,
) -> list[Any]:
    """Predictions in the order of `examples`, of which the windows are encoded already.

    Features are sorted by length, so that a batch pads little, and put back in order. They go `through` the model as
    `forward` does it, unless told otherwise.
    """
    flat = [feature for windows in features for feature in windows]
    outputs = iter((through or forward)(task, model, tokenizer, flat, batch_size, told))
    return [
        task.decode(example, windows, [next(outputs) for _ in windows])
        for example, windows in zip(examples, features, strict=True)
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
    """The logits of each feature, (head labels,) or (tokens, head labels) without padding."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    order = sorted(range(len(features)), key=lambda i: len(features[i]))
    logits: list[torch.Tensor] = [torch.empty(0)] * len(features)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = task.collate([features[i] for i in chosen], tokenizer)
        batch.pop("labels", None)
        output = task.logits(model(**{name: tensor.to(device) for name, tensor in batch.items()})).float().cpu()
        for i, row, mask in zip(chosen, output, batch["attention_mask"], strict=True):
            logits[i] = row[mask.bool()] if task.per_token else row
        told(min(start + batch_size, len(order)), len(order))
    model.train(training)
    return logits

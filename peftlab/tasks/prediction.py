"""Examples → predictions through a model: the one way, for validation, test and serving alike."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch

from peftlab.tasks.generation.generate import generate
from peftlab.tasks.inputs.encoding import ProgressCallback, encode_examples
from peftlab.tasks.inputs.features import Feature
from peftlab.tasks.inputs.inputs import Inputs
from peftlab.tasks.outputs import Continuation, TextGeneration
from peftlab.tasks.task import Task

FeatureOutput = torch.Tensor | Continuation
"""The output of a feature: a tensor, see `Head.outputs`, or a generated text."""
ForwardFunction = Callable[[Sequence[Feature]], Sequence[FeatureOutput]]
"""Features → their outputs: `compute_outputs` of one model, or split across processes."""


def predict_examples(
    task: Task,
    model: torch.nn.Module,
    inputs: Inputs,
    examples: Sequence[Any],
    *,
    max_length: int,
    batch_size: int = 32,
    on_progress: ProgressCallback = lambda done, total: None,
) -> list[Any]:
    """Predictions in the order of `examples`; longer ones than `max_length` tokens go through in overlapping windows.

    `on_progress` hears of features that went through the model.
    """
    features = encode_examples(task, inputs, examples, max_length=max_length, training=False)
    forward_function = partial(compute_outputs, task, model, inputs, batch_size=batch_size, on_progress=on_progress)
    return predict_features(task, examples, features, forward_function)


def predict_features(
    task: Task, examples: Sequence[Any], features: Sequence[Sequence[Feature]], forward_function: ForwardFunction
) -> list[Any]:
    """Predictions in the order of `examples`, of which the windows are encoded already."""
    return decode_outputs(task, examples, features, forward_windows(features, forward_function))


def forward_windows(
    features: Sequence[Sequence[Feature]], forward_function: ForwardFunction
) -> list[list[FeatureOutput]]:
    """The outputs of the features of each example."""
    outputs = iter(forward_function([feature for windows in features for feature in windows]))
    return [[next(outputs) for _ in windows] for windows in features]


def decode_outputs(
    task: Task,
    examples: Sequence[Any],
    features: Sequence[Sequence[Feature]],
    outputs: Sequence[Sequence[FeatureOutput]],
) -> list[Any]:
    """Predictions from the outputs of the features of each example."""
    return [
        task.decode(example, windows, cast(Any, results))
        for example, windows, results in zip(examples, features, outputs, strict=True)
    ]


@torch.inference_mode()
def compute_outputs(
    task: Task,
    model: torch.nn.Module,
    inputs: Inputs,
    features: Sequence[Feature],
    batch_size: int = 32,
    on_progress: ProgressCallback = lambda done, total: None,
) -> list[FeatureOutput]:
    """The output of each feature, in order: generated text if the task generates and the features have no labels.

    Features are sorted by length, so that a batch pads little.
    """
    generation = text_generation(task, features)
    order = longest_first(features)
    given: dict[int, FeatureOutput] = {}
    with module_mode(model, training=False):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = [features[i] for i in chosen]
            if generation:
                made: Sequence[FeatureOutput] = generate(generation, transformers_model(model), inputs, batch)
            else:
                made = _forward(task, model, inputs, batch)
            given |= zip(chosen, made, strict=True)
            on_progress(len(given), len(order))
    return [given[i] for i in range(len(order))]


def longest_first(features: Sequence[Feature]) -> list[int]:
    """Places in `features` by length: what short batches need fits into the memory that long ones have left."""
    return sorted(range(len(features)), key=lambda i: -len(features[i]))


def text_generation(task: Task, features: Sequence[Feature]) -> TextGeneration | None:
    """How text is generated for `features`, of which all have labels or none has; None for a forward pass."""
    return next(filter(None, map(task.outputs.generation, features)), None)


def transformers_model(model: Any) -> Any:
    """The Transformers model in a PEFT model, which generates as any model of its class."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@torch.inference_mode()
def forward(task: Task, model: torch.nn.Module, inputs: Inputs, features: Sequence[Feature]) -> list[torch.Tensor]:
    """The output of each feature, computed in one batch; outputs of tokens are without padding."""
    with module_mode(model, training=False):
        return _forward(task, model, inputs, features)


def _forward(task: Task, model: torch.nn.Module, inputs: Inputs, features: Sequence[Feature]) -> list[torch.Tensor]:
    device = next(model.parameters()).device
    batch = task.head.collate(features, inputs)
    labels = batch.pop("labels", None)
    output = model(**{name: tensor.to(device) for name, tensor in batch.items()})
    return task.head.compute_outputs(output, None if labels is None else labels.to(device), inputs.mask(batch))


@contextmanager
def module_mode(model: torch.nn.Module, *, training: bool) -> Iterator[None]:
    """Inside the block `model` trains, or predicts; then it is again as it was."""
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)

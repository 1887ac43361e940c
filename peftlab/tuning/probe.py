"""Probe a run before it trains: can its base compute the shortest and the longest row, alone and as one batch?

What Transformers or PEFT would raise in the middle of a run becomes a recipe error, and a base whose output for a row
depends on the padding of its batch is refused: its predictions would depend on the rows beside them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.errors import ErrorCollector, PeftlabError
from peftlab.tasks import Feature
from peftlab.tasks.prediction import forward, module_mode
from peftlab.tuning.memory import gradient_checkpointing
from peftlab.tuning.run import Run
from peftlab.tuning.session import TuningSession

KEY = "base.model"
TOLERANCE = 2e-3  # of outputs, relative to the largest one; rounding of fp32 gives less than 1e-5
MAX_FEATURES = 8


def probe(run: Run, session: TuningSession) -> None:
    """Compute outputs and a gradient of a few extreme rows; nothing of the run changes.

    A sharded base is not probed.

    Raises:
        RecipeError: the model fails for them, or gives a row other outputs in a batch than alone.
    """
    if run.sharded:
        return
    with (
        session.process_group.sync_errors(),
        ErrorCollector() as errors,
        checked_embeddings(run.model),
        suppress(_ProbeFailed),
    ):
        shortest, longest, *others = extreme_features(run)
        pair = f"the shortest and the longest row as one batch ({len(shortest)} and {len(longest)} long)"
        with _described(run, pair, errors):
            together = _forward(run, [shortest, longest])
        for feature in others:
            with _described(run, f"a row that is {len(feature)} long", errors):
                _forward(run, [feature])
        with _described(run, f"a row that is {len(shortest)} long", errors):
            alone = [_forward(run, [shortest])[0] for _ in range(2)]
        _check_outputs(run, alone, together[0], errors)
        with _described(run, f"a training step on {pair}", errors):
            _training_step(run, [longest, shortest])


def extreme_features(run: Run) -> list[Feature]:
    """The shortest and the longest labelled feature, then those with the smallest and largest value of each input."""
    features = [
        feature
        for rows in run.dataset.features.values()
        for windows in rows
        for feature in windows
        if feature.labels is not None
    ]
    chosen = [min(features, key=len), max(features, key=len)]
    for name, values in chosen[0].inputs.items():
        if _is_numbers(values):
            largest = partial(_largest, name)
            chosen += [max(features, key=largest), min(features, key=largest)]
    unique = {id(feature): feature for feature in chosen[2:] if not any(feature is one for one in chosen[:2])}
    return [*chosen[:2], *list(unique.values())[: MAX_FEATURES - 2]]


def _is_numbers(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and isinstance(values[0], int)


def _largest(name: str, feature: Feature) -> int:
    values: list[int] = feature.inputs.get(name) or [0]
    return max(values)


class _ProbeFailed(Exception):
    """The model failed, and the reason is recorded."""


class _NoSuchEntry(Exception):
    """An input has a number for which an embedding has no entry."""

    def __init__(self, name: str, module: nn.Embedding, number: int) -> None:
        super().__init__(name)
        self.name, self.module, self.number = name, module, number


@contextmanager
def checked_embeddings(model: nn.Module) -> Iterator[None]:
    """Inside the block an embedding raises before it reads an entry that it lacks, which would stop a GPU for good."""

    def check(name: str, module: nn.Embedding, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].numel():
            lowest, highest = int(args[0].min()), int(args[0].max())
            if lowest < 0 or highest >= module.num_embeddings:
                raise _NoSuchEntry(name, module, highest if lowest >= 0 else lowest)

    hooks = [
        module.register_forward_pre_hook(partial(check, name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _described(run: Run, what: str, errors: ErrorCollector) -> Iterator[None]:
    """Record any error of the model inside the block as a recipe error; models raise errors of all kinds."""
    try:
        yield
    except (PeftlabError, MemoryError):
        raise
    except _NoSuchEntry as error:
        reason, hint = _explain(run, error)
        _add(run, what, reason, hint, errors)
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no reason given"]
        _add(run, what, f"{type(error).__name__}: {lines[0]}", "Take another base.", errors)


def _add(run: Run, what: str, reason: str, hint: str, errors: ErrorCollector) -> None:
    errors.add(f"{_base_name(run)} cannot compute {what}: {reason}", key=KEY, hint=hint)
    raise _ProbeFailed


def _base_name(run: Run) -> str:
    return f"'{run.base.files.model}' ({run.base.model.config.model_type})"


def _explain(run: Run, error: _NoSuchEntry) -> tuple[str, str]:
    """Why an embedding lacks an entry, and what to do."""
    name, count = error.name.rpartition(".")[2], error.module.num_embeddings
    if error.module is run.base.model.get_input_embeddings():
        reason = f"its tokens have numbers up to {error.number}, and the base has embeddings for {count} tokens."
        return reason, "Take the tokenizer that belongs to these weights."
    reason = f"they need entry {error.number} of {error.name}, which has {count} (from 0)."
    if "type" in name:
        return reason, "This base does not know a second text from a first: join the texts of a pair, or take another."
    if "position" in name:
        return reason, f"Lower data.max_length, now {run.dataset.max_length}."
    return reason, "Take another base."


def _forward(run: Run, features: Sequence[Feature]) -> list[Tensor]:
    return forward(run.task, run.model, run.base.inputs, features)


def _check_outputs(run: Run, alone: Sequence[Tensor], batched: Tensor, errors: ErrorCollector) -> None:
    """Check that the shortest row has the same output each time, and beside a longer row."""
    if run.base.quantization == "8bit":  # its layers round a row by the rows beside it
        return
    first, second = alone
    allowed = TOLERANCE * max(1.0, float(first.abs().max()) if first.numel() else 1.0)
    if not _difference(first, second) <= allowed:
        message = f"{_base_name(run)} gives the same row other outputs each time, by {_difference(first, second):.2g}."
        errors.add(message, key=KEY, hint="Its predictions would be random: take another base.")
    elif not _difference(first, batched) <= allowed:
        message = (
            f"{_base_name(run)} gives a row other outputs when a longer row is in its batch, by "
            f"{_difference(first, batched):.2g}: what pads the row changes it."
        )
        errors.add(message, key=KEY, hint="Its predictions would depend on the rows beside them: take another base.")


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference; infinite for other shapes."""
    if one.shape != other.shape:
        return float("inf")
    return float((one - other).abs().max()) if one.numel() else 0.0


def _training_step(run: Run, features: Sequence[Feature]) -> None:
    """Compute a gradient as in training, and forget it."""
    training = run.recipe.training
    if run.recipe.task.trainer != "supervised":  # others compute their loss from more than one output
        return
    batch = run.task.head.collate(features[: training.per_device_train_batch_size], run.base.inputs)
    batch = {name: tensor.to(run.model.device) for name, tensor in batch.items()}
    labels = batch.pop("labels")
    with (
        torch.random.fork_rng(),
        module_mode(run.model, training=True),
        gradient_checkpointing(run.model.get_base_model(), enabled=training.gradient_checkpointing),
        run.autocast(),
    ):
        run.task.head.loss(run.task.head.logits(run.model(**batch)), labels).backward()
    run.model.zero_grad(set_to_none=True)

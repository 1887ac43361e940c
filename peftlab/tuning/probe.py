"""Probe a run before it trains: can its base compute the shortest and the longest row, alone and as one batch?

What Transformers or PEFT would raise in the middle of a run becomes a recipe error, and a base whose output for a row
depends on the padding of its batch is refused: its predictions would depend on the rows beside them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftlab.base import Base
from peftlab.errors import ErrorCollector, PeftlabError
from peftlab.recipe import Recipe
from peftlab.tasks import Feature
from peftlab.tasks.prediction import forward, module_mode, transformers_model
from peftlab.tuning.dataset import EncodedDataset
from peftlab.tuning.distributed.backend_check import shards_base
from peftlab.tuning.fast import fast_steps
from peftlab.tuning.memory import gradient_checkpointing
from peftlab.tuning.run import Run
from peftlab.tuning.session import TuningSession

KEY = "base.model"
TOLERANCE = {"cpu": 5e-5}  # of outputs, relative to the largest one; rounding of fp32 gives about 1e-6
OTHER_TOLERANCE = 2e-3  # on a GPU, whose kernels depend on the size of a batch
MAX_FEATURES = 8
MIN_PADDED = 64  # a row is padded at least to this length, if the base takes it


def probe_base(base: Base, dataset: EncodedDataset, recipe: Recipe, session: TuningSession) -> None:
    """Compute the outputs of a few extreme rows with the base and its head, before the adapter is added.

    A base that several processes will share in parts is not probed.

    Raises:
        RecipeError: the model fails for them, or gives a row other outputs in a batch than alone.
    """
    if shards_base(recipe.training.distributed, session.process_group):
        return
    with _probing(base.model, session) as errors:
        Probe(base.model, base, dataset, errors).check_outputs()


def probe_run(run: Run, session: TuningSession) -> None:
    """Compute outputs and a gradient of a few extreme rows with the adapter; nothing of the run changes.

    Raises:
        RecipeError: as `probe_base`.
    """
    if run.sharded:
        return
    with _probing(run.model, session) as errors:
        probe = Probe(run.model, run.base, run.dataset, errors)
        probe.check_outputs()
        probe.check_training_step(run)


@contextmanager
def _probing(model: nn.Module, session: TuningSession) -> Iterator[ErrorCollector]:
    with session.collect_errors() as errors, checked_embeddings(model), suppress(_ProbeFailed):
        yield errors


def extreme_features(dataset: EncodedDataset) -> list[Feature]:
    """The shortest and the longest labelled feature, then those with the smallest and largest value of each input."""
    windows = [windows for rows in dataset.features.values() for windows in rows]
    features = [feature for row in windows for feature in row if feature.labels is not None]
    chosen = [min(features, key=len), max(features, key=len)]
    for name in sorted({name for feature in features for name in feature.inputs}):
        if _is_numbers(chosen[0].inputs.get(name)):
            largest = partial(_largest, name)
            chosen += [max(features, key=largest), min(features, key=largest)]
    others = {id(feature): feature for feature in chosen[2:] if not any(feature is one for one in chosen[:2])}
    return [*chosen[:2], *list(others.values())[: MAX_FEATURES - 2]]


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

    tokens = inner.get_input_embeddings() if isinstance(inner := transformers_model(model), PreTrainedModel) else None
    # others compute the entry from their input, such as BART's positions
    hooks = [
        module.register_forward_pre_hook(partial(check, name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and (type(module).forward is nn.Embedding.forward or module is tokens)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Probe:
    """Runs extreme rows through a model, and records what fails as recipe errors.

    Args:
        model: The model of `base`, with or without an adapter.
        base: The base.
        dataset: The encoded rows.
        errors: Receives what fails.
    """

    def __init__(self, model: nn.Module, base: Base, dataset: EncodedDataset, errors: ErrorCollector) -> None:
        self._model, self._base, self._dataset, self._errors = model, base, dataset, errors
        self._name = f"'{base.files.model}' ({base.model.config.model_type})"
        self._shortest, self._longest, *self._others = extreme_features(dataset)
        lengths = f"{len(self._shortest)} and {len(self._longest)} long"
        self._pair = f"the shortest and the longest row as one batch ({lengths})"

    def check_outputs(self) -> None:
        """Check that the rows can be computed, and that the shortest has the same output beside the longest."""
        with self._described(self._pair):
            together = self._forward([self._shortest, self._longest])
        for feature in self._others:
            with self._described(f"a row that is {len(feature)} long"):
                self._forward([feature])
        with self._described(f"a row that is {len(self._shortest)} long"):
            first, second = (self._forward([self._shortest])[0] for _ in range(2))
        if self._base.quantization != "8bit":  # its layers round a row by the rows beside it
            self._compare(first, second, together[0])
            self._compare_padded()

    def check_training_step(self, run: Run) -> None:
        """Compute a gradient as in training, and forget it."""
        training, model, head = run.recipe.training, run.model, run.task.head
        # other trainers compute their loss from more than one output; compiling takes minutes
        if run.recipe.task.trainer != "supervised" or training.torch_compile:
            return
        batch = head.collate([self._longest, self._shortest][: training.per_device_train_batch_size], run.base.inputs)
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        labels = batch.pop("labels")
        hint = "Set training.bf16: false." if run.dtype == torch.bfloat16 else "Take another base."
        with (
            self._described(f"a training step in {str(run.dtype).removeprefix('torch.')} on {self._pair}", hint),
            torch.random.fork_rng(),
            module_mode(model, training=True),
            fast_steps(model, run.recipe, run.dtype, run.model_inputs([self._shortest])),
            gradient_checkpointing(model.get_base_model(), enabled=training.gradient_checkpointing),
            run.autocast(),
        ):
            head.loss(head.logits(model(**batch)), labels).backward()
        model.zero_grad(set_to_none=True)

    def _forward(self, features: Sequence[Feature]) -> list[Tensor]:
        return forward(self._dataset.task, self._model, self._base.inputs, features)

    @contextmanager
    def _described(self, what: str, hint: str = "Take another base.") -> Iterator[None]:
        """Record any error of the model inside the block as a recipe error; models raise errors of all kinds."""
        try:
            yield
        except (PeftlabError, MemoryError):
            raise
        except _NoSuchEntry as error:
            self._add(what, *self._explain(error))
        except Exception as error:
            lines = str(error).strip().splitlines() or ["no reason given"]
            self._add(what, f"{type(error).__name__}: {lines[0].removesuffix('.')}.", hint)

    def _add(self, what: str, reason: str, hint: str) -> None:
        self._errors.add(f"{self._name} cannot compute {what}: {reason}", key=KEY, hint=hint)
        raise _ProbeFailed

    def _explain(self, error: _NoSuchEntry) -> tuple[str, str]:
        """Why an embedding lacks an entry, and what to do."""
        name, count = error.name.rpartition(".")[2], error.module.num_embeddings
        if error.module is self._base.model.get_input_embeddings():
            reason = f"its tokens have numbers up to {error.number}, and the base has embeddings for {count} tokens."
            return reason, "Take the tokenizer that belongs to these weights."
        reason = f"it needs entry {error.number} of {error.name}, which has {count} (from 0)."
        if "type" in name:
            hint = "This base does not tell the second text of a pair from the first: join them, or take another base."
            return reason, hint
        if "position" in name:
            return reason, f"Lower data.max_length, now {self._dataset.max_length}."
        return reason, "Take another base."

    def _compare(self, first: Tensor, second: Tensor, batched: Tensor) -> None:
        """Compare two outputs of the shortest row alone, and one in a batch with the longest."""
        allowed = self._allowed(first)
        if not (by := _difference(first, second)) <= allowed:
            message = f"{self._name} gives the same row other outputs each time, by {by:.2g}."
            self._errors.add(message, key=KEY, hint="Its predictions would be random: take another base.")
        elif not (by := _difference(first, batched)) <= allowed:
            self._add_padding(by)

    def _compare_padded(self) -> None:
        """Compare outputs of the shortest row with more and more padding, as longer rows of other adapters cause."""
        if self._errors.issues or not self._dataset.task.head.labels:  # the output of a language model is long
            return
        lengths = [len(self._shortest), min(self._dataset.max_length, max(2 * len(self._longest), MIN_PADDED))]
        with self._described(f"a row that is padded to {lengths[1]}"):
            plain, padded = (self._padded_output(length) for length in lengths)
        if not (by := _difference(plain, padded)) <= self._allowed(plain):
            self._add_padding(by)

    @torch.inference_mode()
    def _padded_output(self, length: int) -> Tensor:
        """The output of the shortest row, padded to a length."""
        head, inputs = self._dataset.task.head, self._base.inputs
        features = [replace(self._shortest, labels=None)]
        batch = inputs.widen(inputs.pad(features), length)
        batch |= head.extra_inputs(features, inputs.mask(batch))
        batch = {name: tensor.to(self._base.model.device) for name, tensor in batch.items()}
        with module_mode(self._model, training=False):
            return head.compute_outputs(self._model(**batch), None, inputs.mask(batch))[0]

    def _add_padding(self, difference: float) -> None:
        message = (
            f"{self._name} gives a row other outputs when a longer row is in its batch, by {difference:.2g}: "
            "what pads the row changes it."
        )
        hint = "Its predictions would depend on the rows beside them: take another base."
        self._errors.add(message, key=KEY, hint=hint)

    def _allowed(self, output: Tensor) -> float:
        """The difference that rounding explains."""
        tolerance = TOLERANCE.get(self._base.model.device.type, OTHER_TOLERANCE)
        return tolerance * max(1.0, float(output.abs().max()) if output.numel() else 1.0)


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference where both have numbers: some outputs are padded to the longest in the batch."""
    shared = tuple(slice(min(sizes)) for sizes in zip(one.shape, other.shape, strict=True))
    difference = (one[shared] - other[shared]).abs()
    return float(difference.max()) if difference.numel() else 0.0

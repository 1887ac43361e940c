"""A cache of the activations of the frozen layers, computed once per row and used in all epochs.

Layers below the lowest trainable one compute the same for a row in every epoch, unless they use dropout. So they run
without dropout, with or without the cache, and the output of the last frozen layer is saved for the training and
validation rows. Masks, positions and everything else are still computed by the model's own code; only the frozen layers
return cached activations. Before training, logits with and without the cache are compared.

A run with the cache gives the weights of a run without it, up to rounding: the last bits of a row's activations depend
on the length to which its batch is padded.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from shutil import disk_usage
from typing import Any, cast

import torch
from torch import Tensor, nn

from peftlab.recipe import parse_byte_size
from peftlab.tasks import Feature
from peftlab.tasks.inputs.encoding import ProgressCallback
from peftlab.tasks.prediction import compute_outputs
from peftlab.tuning.frozen.activation_file import Activations, Inputs, Writer, first_match, hash_inputs
from peftlab.tuning.frozen.layers import (
    CacheUnavailable,
    FrozenPrefix,
    allclose,
    find_frozen_prefix,
    hidden_states,
    shortest_and_longest,
    without_dropout,
)
from peftlab.tuning.progress import Progress
from peftlab.tuning.run import Run

RESERVED_BYTES = 100_000_000  # disk space that stays free
SPLITS = ("validation", "train")

Forward = Callable[..., Any]


@contextmanager
def cached_activations(run: Run, folder: Path, progress: Progress) -> Iterator["CachedForward | None"]:
    """Inside the block, frozen layers run without dropout, and return cached activations if possible.

    Nothing changes if the lowest layer is trained. If no cache can be used (too little space, different logits), the
    reason is reported, training continues without it, and the block gets None. The cache files are in `folder` inside
    the block.
    """
    prefix, forward = _find_prefix_or_report(run, progress), None
    with ExitStack() as stack:
        if prefix:
            stack.enter_context(without_dropout(prefix))
            try:
                forward = stack.enter_context(_cached_forward(prefix, run, folder, progress))
            except CacheUnavailable as reason:
                progress.info(f"{prefix}. They run without dropout and again in every epoch: {reason}.")
        yield forward


def _find_prefix_or_report(run: Run, progress: Progress) -> FrozenPrefix | None:
    try:
        with run.autocast():
            return find_frozen_prefix(run)
    except CacheUnavailable as reason:
        progress.info(f"Frozen layers run again in every epoch, with the base's dropout: {reason}.")
        return None


@contextmanager
def _cached_forward(prefix: FrozenPrefix, run: Run, folder: Path, progress: Progress) -> Iterator["CachedForward"]:
    """Compute the activations of all training and validation rows, and use them inside the block.

    Raises:
        CacheUnavailable: there is too little space, or the logits differ with the cache.
    """
    if run.task.targets.sampler(run.base.inputs):
        raise CacheUnavailable("rows are masked again in every epoch")
    splits = [split for split in SPLITS if split in run.dataset.features]
    features = {split: [one for windows in run.dataset.features[split] for one in windows] for split in splits}
    if not all(features.values()):
        raise CacheUnavailable("there is no validation row to test the cache")
    required = prefix.token_bytes * sum(len(feature) for rows in features.values() for feature in rows)
    _check_disk_space(required, run.recipe.training.frozen_cache, folder)
    progress.info(f"{prefix}. They run without dropout and only once per row ({required / 1e6:.0f} MB are cached).")
    with ExitStack() as stack:
        files = []
        for split, rows in features.items():
            path = folder / f"frozen-{split}-{run.process_group.rank}.bin"  # one file per process
            stack.callback(path.unlink, missing_ok=True)
            with run.autocast(), progress.track_activation_caching(split) as on_progress:
                files.append(_compute_activations(prefix, run, rows, path, on_progress))
                _check_logits(prefix, run, files[-1], shortest_and_longest(rows))
        forward = CachedForward(prefix, files)
        stack.enter_context(_replaced_forward(prefix, forward))
        yield forward


def _check_disk_space(required: int, budget: str | None, folder: Path) -> None:
    if budget is None:
        raise CacheUnavailable("training.frozen_cache is null")
    if required > parse_byte_size(budget):
        raise CacheUnavailable(f"the cache takes {required / 1e6:.0f} MB, and training.frozen_cache is {budget}")
    free = disk_usage(folder).free
    if required + RESERVED_BYTES > free:
        raise CacheUnavailable(f"the cache takes {required / 1e6:.0f} MB, and {folder} has {free / 1e6:.0f} MB free")


def _compute_activations(
    prefix: FrozenPrefix, run: Run, features: Sequence[Feature], path: Path, on_progress: ProgressCallback
) -> Activations:
    """Run `features` through the frozen layers, in batches of similar length, into the file at `path`."""
    size = run.recipe.training.per_device_eval_batch_size
    try:
        with path.open("wb") as file:
            writer = Writer(file)
            with _replaced_forward(prefix, RecordingForward(prefix, writer)):
                compute_outputs(run.task, run.model, run.base.inputs, features, size, on_progress)
        return Activations(path, writer)
    except OSError as error:
        raise CacheUnavailable(f"{path} cannot be written: {error.strerror or error}") from error


def _check_logits(prefix: FrozenPrefix, run: Run, file: Activations, features: list[Feature]) -> None:
    """Compare logits with and without the cache: for each row alone, and for both rows padded in one batch."""
    for size in (1, len(features)):
        predict = partial(compute_outputs, run.task, run.model, run.base.inputs, features, size)
        expected, forward = cast(list[Tensor], predict()), CachedForward(prefix, [file])
        with _replaced_forward(prefix, forward):
            logits = cast(list[Tensor], predict())
        if forward.num_misses or not all(allclose(a, b, run.dtype) for a, b in zip(expected, logits, strict=True)):
            raise CacheUnavailable("the model's logits differ with the cache")


class RecordingForward:
    """A forward pass that writes the output of the last frozen layer to a file, and skips the layers above."""

    def __init__(self, prefix: FrozenPrefix, writer: Writer) -> None:
        self.prefix, self.writer = prefix, writer
        self.inputs: Inputs
        self.states: Tensor

    def before_model(self, model: nn.Module, args: Any, arguments: dict[str, Any]) -> None:
        """Hash the inputs of a batch."""
        inputs = hash_inputs(arguments, _precision_key(model))
        if inputs is None:
            raise CacheUnavailable("its inputs are not one value per token")
        self.inputs = inputs

    def layer(self, number: int, forward: Forward, *args: Any, **arguments: Any) -> Any:
        """Replaces the forward method of layer `number`."""
        if number >= self.prefix.num_frozen:
            return self.prefix.layer_output(self.states)
        output = forward(*args, **arguments)
        if number == self.prefix.num_frozen - 1:
            self.states = hidden_states(output)
            self.writer.write(self.inputs, self.states)
        return output


class CachedForward:
    """A forward pass whose frozen layers return cached activations, if every row of a batch is cached.

    `num_misses` counts the batches that had to be computed.
    """

    def __init__(self, prefix: FrozenPrefix, files: Sequence[Activations]) -> None:
        self.prefix, self.files = prefix, files
        self.states: Tensor | None = None
        self.num_misses = 0

    def before_model(self, model: nn.Module, args: Any, arguments: dict[str, Any]) -> None:
        """Look up the activations of a batch."""
        inputs = hash_inputs(arguments, _precision_key(model))
        self.states = first_match(self.files, inputs) if inputs else None
        self.num_misses += self.states is None

    def layer(self, number: int, forward: Forward, *args: Any, **arguments: Any) -> Any:
        """Replaces the forward method of layer `number`."""
        if number >= self.prefix.num_frozen or self.states is None:
            return forward(*args, **arguments)
        return self.prefix.layer_output(self.states)


@contextmanager
def _replaced_forward(prefix: FrozenPrefix, replacement: RecordingForward | CachedForward) -> Iterator[None]:
    """Inside the block, the layers call `replacement.layer` instead of their own forward method.

    Replacing `forward` on the layers keeps the modules, and so PEFT's and Trainer's references to them. With the cache
    a run of `method: head` takes 0.20 of the time (benchmarks/results/2026-11-22-frozen-prefix-head.md, decision 0012).
    """
    hook = prefix.model.register_forward_pre_hook(replacement.before_model, with_kwargs=True)
    for number, layer in enumerate(prefix.layers):
        layer.forward = partial(replacement.layer, number, layer.forward)
    try:
        yield
    finally:
        hook.remove()
        for layer in prefix.layers:
            del layer.forward


def _precision_key(model: nn.Module) -> str:
    """The dtypes of weights and autocast, on which activations depend."""
    weights = next(model.parameters())
    device_type = weights.device.type
    autocast = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else ""
    return f"{weights.dtype} {autocast}"

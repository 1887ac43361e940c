"""What the layers below the lowest adapted one make of each row, computed once for all epochs.

Layers through which no gradient flows give the same for a row in every epoch, if nothing in them is random. So they run
without dropout (with the cache or not, that the result be the same), and what leaves the last of them is kept for the
whole run, for training and validation rows alike. The model's own code still makes masks, positions and everything
else; only the frozen layers answer from memory. Before they do, logits with and without it are compared.

A run with the cache ends with the weights of a run without, to rounding: a row's activations differ in their last bits
with the width that its batch is padded to.
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
from peftlab.tasks.prediction import outcomes
from peftlab.tuning.frozen.activation_file import Activations, Inputs, Writer, first_match, inputs_of
from peftlab.tuning.frozen.layers import (
    CacheUnavailable,
    FrozenPrefix,
    allclose,
    find_frozen_prefix,
    shortest_and_longest,
    states_of,
    without_dropout,
)
from peftlab.tuning.progress import Progress
from peftlab.tuning.run import Run

SPARE = 100_000_000  # bytes of the disk that stay free
SPLITS = ("validation", "train")

Forward = Callable[..., Any]


@contextmanager
def cached_activations(run: Run, folder: Path, progress: Progress) -> Iterator["CachedForward | None"]:
    """Inside the block, the layers below the lowest adapted one run without dropout, from memory where they can.

    Nothing happens where the lowest layer is adapted, or something below it trains. That activations cannot be kept
    (no budget, no space, a model that answers otherwise with them) is told, and training goes on without: None.
    The files lie in `folder` while the block lasts.
    """
    prefix, answering = _find_prefix_or_report(run, progress), None
    with ExitStack() as stack:
        if prefix:
            stack.enter_context(without_dropout(prefix))
            try:
                answering = stack.enter_context(_cached_forward(prefix, run, folder, progress))
            except CacheUnavailable as reason:
                progress.info(f"{prefix}: they run without dropout, but anew in every epoch; {reason}.")
        yield answering


def _find_prefix_or_report(run: Run, progress: Progress) -> FrozenPrefix | None:
    try:
        with run.autocast():
            return find_frozen_prefix(run)
    except CacheUnavailable as reason:
        progress.info(f"Frozen layers run anew in every epoch, with the base's dropout: {reason}.")
        return None


@contextmanager
def _cached_forward(prefix: FrozenPrefix, run: Run, folder: Path, progress: Progress) -> Iterator["CachedForward"]:
    """Compute what leaves the frozen layers for every training and validation row, and answer with it in the block.

    Raises:
        Unsuited: there is no room for it, or the model answers otherwise with it.
    """
    if run.task.dynamic_masking(run.base.inputs):
        raise CacheUnavailable("rows are masked anew in every epoch")
    splits = {split: [one for windows in run.dataset.features[split] for one in windows] for split in SPLITS}
    if not splits["validation"]:
        raise CacheUnavailable("there is no validation row to try it on")
    needed = prefix.token_bytes * sum(len(feature) for features in splits.values() for feature in features)
    _check_disk_space(needed, run.recipe.training.frozen_cache, folder)
    progress.info(
        f"{prefix}: they run without dropout, and what they make of each row is kept ({needed / 1e6:.0f} MB)."
    )
    with ExitStack() as stack:
        kept = []
        for split, features in splits.items():
            path = folder / f"frozen-{split}-{run.process_group.rank}.bin"  # each process keeps its own
            stack.callback(path.unlink, missing_ok=True)
            with run.autocast(), progress.track_activation_caching(split) as told:
                kept.append(_compute_activations(prefix, run, features, path, told))
                _check_logits(prefix, run, kept[-1], shortest_and_longest(features))
        answering = CachedForward(prefix, kept)
        stack.enter_context(_replaced_forward(prefix, answering))
        yield answering


def _check_disk_space(needed: int, budget: str | None, folder: Path) -> None:
    if budget is None:
        raise CacheUnavailable("training.frozen_cache is null")
    if needed > parse_byte_size(budget):
        raise CacheUnavailable(f"keeping them takes {needed / 1e6:.0f} MB, and training.frozen_cache is {budget}")
    free = disk_usage(folder).free
    if needed + SPARE > free:
        raise CacheUnavailable(f"keeping them takes {needed / 1e6:.0f} MB, and {folder} has {free / 1e6:.0f} MB free")


def _compute_activations(
    prefix: FrozenPrefix, run: Run, features: Sequence[Feature], path: Path, told: ProgressCallback
) -> Activations:
    """Run `features` through the frozen layers, in batches of like length, into the file at `path`."""
    size = run.recipe.training.per_device_eval_batch_size
    try:
        with path.open("wb") as file:
            writer = Writer(file)
            with _replaced_forward(prefix, RecordingForward(prefix, writer)):
                outcomes(run.task, run.model, run.base.inputs, features, size, told)
        return Activations(path, writer)
    except OSError as error:
        raise CacheUnavailable(f"{path} cannot be written: {error.strerror or error}") from error


def _check_logits(prefix: FrozenPrefix, run: Run, kept: Activations, features: list[Feature]) -> None:
    """Logits with and without what is kept, of each row alone and padded beside the other."""
    for size in (1, len(features)):
        through = partial(outcomes, run.task, run.model, run.base.inputs, features, size)
        expected, answering = cast(list[Tensor], through()), CachedForward(prefix, [kept])
        with _replaced_forward(prefix, answering):
            found = cast(list[Tensor], through())
        if answering.unknown or not all(allclose(a, b, run.dtype) for a, b in zip(expected, found, strict=True)):
            raise CacheUnavailable("the model answers otherwise when they are kept")


class RecordingForward:
    """A way through the model that writes down what leaves the frozen layers, and skips those above."""

    def __init__(self, prefix: FrozenPrefix, writer: Writer) -> None:
        self.prefix, self.writer = prefix, writer
        self.inputs: Inputs
        self.states: Tensor

    def enter(self, model: nn.Module, args: Any, arguments: dict[str, Any]) -> None:
        """A batch comes to the model."""
        inputs = inputs_of(arguments, _precision_key(model))
        if inputs is None:
            raise CacheUnavailable("its inputs are not one value a token")
        self.inputs = inputs

    def layer(self, number: int, forward: Forward, *args: Any, **arguments: Any) -> Any:
        """In the place of the forward pass of layer `number`."""
        if number >= self.prefix.frozen:
            return self.prefix.answer(self.states)
        output = forward(*args, **arguments)
        if number == self.prefix.frozen - 1:
            self.states = states_of(output)
            self.writer.write(self.inputs, self.states)
        return output


class CachedForward:
    """A way through the model on which the frozen layers answer from memory, where every row of a batch is known.

    `unknown` counts the batches that had to be computed.
    """

    def __init__(self, prefix: FrozenPrefix, kept: Sequence[Activations]) -> None:
        self.prefix, self.kept = prefix, kept
        self.states: Tensor | None = None
        self.unknown = 0

    def enter(self, model: nn.Module, args: Any, arguments: dict[str, Any]) -> None:
        """A batch comes to the model."""
        inputs = inputs_of(arguments, _precision_key(model))
        self.states = first_match(self.kept, inputs) if inputs else None
        self.unknown += self.states is None

    def layer(self, number: int, forward: Forward, *args: Any, **arguments: Any) -> Any:
        """In the place of the forward pass of layer `number`."""
        if number >= self.prefix.frozen or self.states is None:
            return forward(*args, **arguments)
        return self.prefix.answer(self.states)


@contextmanager
def _replaced_forward(prefix: FrozenPrefix, way: RecordingForward | CachedForward) -> Iterator[None]:
    """Inside the block, the model goes `way`. The layers stay the modules they are: only their forward is replaced."""
    hook = prefix.model.register_forward_pre_hook(way.enter, with_kwargs=True)
    for number, layer in enumerate(prefix.layers):
        layer.forward = partial(way.layer, number, layer.forward)
    try:
        yield
    finally:
        hook.remove()
        for layer in prefix.layers:
            del layer.forward


def _precision_key(model: nn.Module) -> str:
    """What the same inputs may give other activations by: the precision of the weights and of the computation."""
    weights = next(model.parameters())
    kind = weights.device.type
    return f"{weights.dtype} {torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else ''}"

"""The frozen layers below the lowest adapted one: no dropout there, and what they make of each row is computed once.

Layers through which no gradient flows give the same for a row in every epoch, if nothing in them is random. So they run
without dropout (with the cache or not, that the result be the same), and what leaves the last of them is kept for the
whole run, for training and validation rows alike. The model's own code still makes masks, positions and
everything else; only the frozen layers answer from memory.

Which modules are layers, and where the frozen ones end, is found by running two rows, not by names of architectures:
they hand one tensor of (batch, tokens, hidden) from each to the next, and autograd says which of these depend on
anything that trains. Before the kept activations are used, logits with and without them are compared.

A run with the cache ends with the weights of a run without, to rounding: a row's activations differ in their last bits
with the width that its batch is padded to.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shutil import disk_usage
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.recipe import bytes_in
from peftlab.tasks import Feature
from peftlab.tasks.predicting import forward
from peftlab.tuning.activations import Activations, Inputs, Writer, first_read, inputs_of
from peftlab.tuning.progress import Progress
from peftlab.tuning.run import Run

TOLERANCE = 1e-4  # relative; rounding differs with the width that a batch is padded to
COARSE_TOLERANCE = 5e-2  # of 16-bit logits
SPARE = 100_000_000  # bytes of the disk that stay free
FILES = {"train": "frozen-train.bin", "validation": "frozen-validation.bin"}

Forward = Callable[..., Any]


class _Unsuited(Exception):
    """Why this model's activations cannot be kept, or are not."""


@dataclass(frozen=True)
class Prefix:
    """The layers of a Transformers model, of which the first `frozen` depend on nothing that trains.

    `below` are the modules that are done when the last of these is, `token_bytes` the size of the activations of one
    token, `extras` how many more things a layer returns beside them (None: it returns them bare).
    """

    model: nn.Module
    layers: list[nn.Module]
    frozen: int
    below: list[nn.Module]
    token_bytes: int
    extras: int | None

    def __str__(self) -> str:
        return f"{self.frozen} of {len(self.layers)} layers lie below all that trains"

    def answer(self, states: Tensor | None) -> Any:
        """`states` in the form in which the layers return them."""
        return states if self.extras is None else (states, *[None] * self.extras)


@contextmanager
def frozen_prefix(run: Run, folder: Path, progress: Progress) -> Iterator["Answering | None"]:
    """Inside the block, the layers below the lowest adapted one run without dropout, from memory where they can.

    Nothing happens where the lowest layer is adapted, or something below it trains. That activations cannot be kept
    (no budget, no space, a model that answers otherwise with them) is told, and training goes on without: None.
    The files lie in `folder` while the block lasts.
    """
    prefix, answering = _told_prefix(run, progress), None
    with ExitStack() as stack:
        if prefix:
            stack.enter_context(_without_dropout(prefix))
            try:
                answering = stack.enter_context(_remembered(prefix, run, folder, progress))
            except _Unsuited as reason:
                progress.note(f"{prefix}: they run without dropout, but anew in every epoch; {reason}.")
        yield answering


def _told_prefix(run: Run, progress: Progress) -> Prefix | None:
    try:
        return find_prefix(run)
    except _Unsuited as reason:
        progress.note(f"Frozen layers run anew in every epoch, with the base's dropout: {reason}.")
        return None


def find_prefix(run: Run) -> Prefix | None:
    """The frozen layers of the run's model, or None where the lowest one is adapted.

    Raises:
        _Unsuited: it cannot be told which layers are frozen, or they are random even without their dropout.
    """
    model = run.model.get_base_model()
    layers = _layers(model)
    if not layers or any(parameter.requires_grad for parameter in layers[0].parameters()):
        return None
    if model.config.is_encoder_decoder:
        raise _Unsuited("the base is an encoder with a decoder")
    if model.device.type == "cuda" and torch.cuda.device_count() > 1:
        raise _Unsuited("training uses several GPUs")
    batch = _probe_batch(run)
    trace = _traced(model, layers, batch)
    prefix = trace.prefix(model, layers, batch["input_ids"].shape)
    if prefix:
        _check_repeats(prefix, batch, trace)
    return prefix


def _layers(model: nn.Module) -> list[nn.Module]:
    """The list of modules that holds most parameters: the outermost one, where lists lie in lists."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    sizes = [sum(parameter.numel() for parameter in module.parameters()) for module in lists]
    return list(lists[sizes.index(max(sizes))]) if lists else []


def _extremes(features: Sequence[Feature]) -> list[Feature]:
    return [min(features, key=len), max(features, key=len)]


def _outermost(modules: list[nn.Module]) -> list[nn.Module]:
    inside = {id(inner) for module in modules for inner in module.modules() if inner is not module}
    return [module for module in modules if id(module) not in inside]


def _probe_batch(run: Run) -> dict[str, Tensor]:
    batch = run.task.collate(_extremes(run.features), run.base.tokenizer)
    return {name: tensor.to(run.model.device) for name, tensor in batch.items() if name != "labels"}


@dataclass
class _Trace:
    """What went on in a forward pass: which layer gave what, in order, and which modules were done when."""

    outputs: list[tuple[int, Any]] = field(default_factory=list)
    done: list[nn.Module] = field(default_factory=list)

    def states(self, number: int) -> Any:
        """What left layer `number`."""
        return _states(self.outputs[number][1])

    def prefix(self, model: nn.Module, layers: list[nn.Module], shape: torch.Size) -> Prefix | None:
        """The layers that no gradient reaches; None if the lowest already is reached."""
        self._check(len(layers), shape)
        frozen = next((i for i in range(len(layers)) if self.states(i).requires_grad), len(layers))
        if not frozen:
            return None
        last = self.done.index(layers[frozen - 1])
        below, above = self.done[: last + 1], self.done[last + 1 :]
        if set(map(id, below)) & set(map(id, above)):
            raise _Unsuited("its layers share modules")
        output, states = self.outputs[frozen - 1][1], self.states(frozen - 1)
        extras = len(output) - 1 if isinstance(output, tuple) else None
        return Prefix(model, layers, frozen, _outermost(below), states.shape[-1] * states.dtype.itemsize, extras)

    def _check(self, count: int, shape: torch.Size) -> None:
        """Each layer ran once, in order, and gave (batch, tokens, hidden)."""
        tensors = [self.states(i) for i in range(len(self.outputs))]
        if [number for number, _ in self.outputs] != list(range(count)) or not all(
            isinstance(tensor, Tensor) and tensor.dim() == 3 and tensor.shape[:2] == shape for tensor in tensors
        ):
            raise _Unsuited("the base's layers do not simply follow one another")


def _traced(model: nn.Module, layers: list[nn.Module], batch: dict[str, Tensor]) -> _Trace:
    """Run `batch` as it stands, without dropout and with gradients."""
    trace, numbers = _Trace(), {id(layer): number for number, layer in enumerate(layers)}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        trace.done.append(module)
        if id(module) in numbers:
            trace.outputs.append((numbers[id(module)], output))

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.enable_grad(), _in_training(model, False):
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return trace


@contextmanager
def _in_training(model: nn.Module, training: bool) -> Iterator[None]:
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)


def _check_repeats(prefix: Prefix, batch: dict[str, Tensor], trace: _Trace) -> None:
    """In training the frozen layers must give just what they give in prediction."""
    device = next(prefix.model.parameters()).device
    again: list[Tensor] = []
    last = prefix.layers[prefix.frozen - 1]
    hook = last.register_forward_hook(lambda layer, args, output: again.append(_states(output)))
    try:
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.no_grad(),
            _without_dropout(prefix),
            _in_training(prefix.model, True),
        ):
            prefix.model(**batch)
    finally:
        hook.remove()
    if not _alike(trace.states(prefix.frozen - 1), again[0]):
        raise _Unsuited("something random is left in them")


@contextmanager
def _without_dropout(prefix: Prefix) -> Iterator[None]:
    """Inside the block, whoever sets the model to training leaves the frozen part in evaluation."""

    def quiet(*_: Any) -> None:
        if prefix.below[-1].training:
            for module in prefix.below:
                module.eval()

    hook = prefix.model.register_forward_pre_hook(quiet)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _remembered(prefix: Prefix, run: Run, folder: Path, progress: Progress) -> Iterator["Answering"]:
    """Compute what leaves the frozen layers for every training and validation row, and answer with it in the block.

    Raises:
        _Unsuited: there is no room for it, or the model answers otherwise with it.
    """
    splits = {"validation": _validation_features(run), "train": run.features}
    needed = prefix.token_bytes * sum(len(feature) for features in splits.values() for feature in features)
    _check_room(needed, run.recipe.training.frozen_cache, folder)
    progress.note(
        f"{prefix}: they run without dropout, and what they make of each row is kept ({needed / 1e6:.0f} MB)."
    )
    with ExitStack() as stack:
        kept = []
        for split, features in splits.items():
            path = folder / FILES[split]
            stack.callback(path.unlink, missing_ok=True)
            with run.precision() if split == "train" else nullcontext():
                kept.append(_computed(prefix, run, features, path, progress))
            if split == "validation":  # in full precision, where a difference is not rounding
                _check_answers(prefix, run, kept[0], _extremes(features))
        answering = Answering(prefix, kept)
        stack.enter_context(_rerouted(prefix, answering))
        yield answering


def _validation_features(run: Run) -> list[Feature]:
    return [
        feature
        for example in run.examples["validation"]
        for feature in run.task.encode(example, run.base.tokenizer, run.max_length, training=False)
    ]


def _check_room(needed: int, budget: str | None, folder: Path) -> None:
    if budget is None:
        raise _Unsuited("training.frozen_cache is null")
    if needed > bytes_in(budget):
        raise _Unsuited(f"keeping them takes {needed / 1e6:.0f} MB, and training.frozen_cache is {budget}")
    free = disk_usage(folder).free
    if needed + SPARE > free:
        raise _Unsuited(f"keeping them takes {needed / 1e6:.0f} MB, and {folder} has {free / 1e6:.0f} MB free")


def _computed(prefix: Prefix, run: Run, features: Sequence[Feature], path: Path, progress: Progress) -> Activations:
    """Run `features` through the frozen layers, in batches of like length, into the file at `path`."""
    size = run.recipe.training.per_device_eval_batch_size
    try:
        with path.open("wb") as file:
            writer = Writer(file)
            with _rerouted(prefix, Recording(prefix, writer)):
                forward(run.task, run.model, run.base.tokenizer, features, size, progress.frozen_computed)
        return Activations(path, writer)
    except OSError as error:
        raise _Unsuited(f"{path} cannot be written: {error.strerror or error}") from error


def _check_answers(prefix: Prefix, run: Run, kept: Activations, features: list[Feature]) -> None:
    """Logits with and without what is kept, of each row alone and padded beside the other."""
    for size in (1, len(features)):
        through = partial(forward, run.task, run.model, run.base.tokenizer, features, size)
        expected, answering = through(), Answering(prefix, [kept])
        with _rerouted(prefix, answering):
            found = through()
        if answering.unknown or not all(map(_alike, expected, found)):
            raise _Unsuited("the model answers otherwise when they are kept")


def _alike(expected: Tensor, found: Tensor) -> bool:
    tolerance = TOLERANCE if expected.dtype.itemsize >= 4 else COARSE_TOLERANCE
    return bool((expected - found).abs().max() <= tolerance * max(1.0, float(expected.abs().max())))


class Recording:
    """A way through the model that writes down what leaves the frozen layers, and skips those above."""

    def __init__(self, prefix: Prefix, writer: Writer) -> None:
        self.prefix, self.writer = prefix, writer
        self.inputs: Inputs | None = None
        self.states: Tensor | None = None

    def enter(self, model: nn.Module, args: Any, arguments: dict[str, Any]) -> None:
        """A batch comes to the model."""
        self.inputs = inputs_of(arguments, _manner(model))
        if self.inputs is None:
            raise _Unsuited("its inputs are not one value a token")

    def layer(self, number: int, forward: Forward, *args: Any, **arguments: Any) -> Any:
        """In the place of the forward pass of layer `number`."""
        if number >= self.prefix.frozen:
            return self.prefix.answer(self.states)
        output = forward(*args, **arguments)
        if number == self.prefix.frozen - 1:
            self.states = _states(output)
            self.writer.write(self.inputs, self.states)
        return output


class Answering:
    """A way through the model on which the frozen layers answer from memory, where every row of a batch is known.

    `unknown` counts the batches that had to be computed.
    """

    def __init__(self, prefix: Prefix, kept: Sequence[Activations]) -> None:
        self.prefix, self.kept = prefix, kept
        self.states: Tensor | None = None
        self.unknown = 0

    def enter(self, model: nn.Module, args: Any, arguments: dict[str, Any]) -> None:
        """A batch comes to the model."""
        inputs = inputs_of(arguments, _manner(model))
        self.states = first_read(self.kept, inputs) if inputs else None
        self.unknown += self.states is None

    def layer(self, number: int, forward: Forward, *args: Any, **arguments: Any) -> Any:
        """In the place of the forward pass of layer `number`."""
        if number >= self.prefix.frozen or self.states is None:
            return forward(*args, **arguments)
        return self.prefix.answer(self.states)


@contextmanager
def _rerouted(prefix: Prefix, way: Recording | Answering) -> Iterator[None]:
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


def _manner(model: nn.Module) -> str:
    """What the same inputs may give other activations by: the precision of the weights and of the computation."""
    weights = next(model.parameters())
    kind = weights.device.type
    return f"{weights.dtype} {torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else ''}"


def _states(output: Any) -> Any:
    """A layer gives its activations bare, or first in a tuple."""
    return output[0] if isinstance(output, tuple) else output

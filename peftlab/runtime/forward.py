"""Run features of any adapters through the one base, in as few forward passes as possible."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor

from peftlab.runtime.adapter_template import LoadedAdapter
from peftlab.runtime.backbones import with_backbone
from peftlab.runtime.generation import generate_texts
from peftlab.runtime.head_calls import (
    Arguments,
    apply_head,
    join_arguments,
    layout_of,
    record_call,
    slice_output,
    to_float32,
)
from peftlab.runtime.routing import Router, group_segments
from peftlab.tasks import Feature
from peftlab.tasks.inputs.encoding import ProgressCallback
from peftlab.tasks.inputs.inputs import Inputs
from peftlab.tasks.prediction import FeatureOutput, forward, longest_first

Key = TypeVar("Key")
KeyedFeatures = Sequence[tuple[Key, Feature]]
"""Features, each with the key of its adapter."""
Pin = Callable[[Collection[Any]], AbstractContextManager[Mapping[Any, LoadedAdapter]]]
"""Loads the adapters of some keys and keeps them in memory inside the block; see `AdapterCache.pinned`."""
BATCH_SIZE = 32


@torch.inference_mode()
def forward_features(
    features: KeyedFeatures[Key],
    pin: Pin,
    router: Router,
    inputs: Inputs,
    *,
    max_adapters: int | None = None,
    on_progress: ProgressCallback = lambda done, total: None,
) -> list[FeatureOutput]:
    """Compute the output of each feature by its adapter, in order.

    A batch has features of similar length, to save padding, and of at most `max_adapters` adapters.
    """
    outputs: dict[int, FeatureOutput] = {}
    for batch in _batches(features, max_adapters or BATCH_SIZE):
        with pin({features[i][0] for i in batch}) as adapters:
            rows = [(adapters[features[i][0]], features[i][1]) for i in batch]
            for indices, results in _forward_batch(rows, router, inputs):
                outputs |= zip([batch[i] for i in indices], results, strict=True)
        on_progress(len(outputs), len(features))
    return [outputs[i] for i in range(len(features))]


def _batches(features: KeyedFeatures[Key], max_adapters: int) -> Iterator[list[int]]:
    """Yield indices of features for each batch, the longest features first."""
    batch: list[int] = []
    keys: set[Key] = set()
    for i in longest_first([feature for _, feature in features]):
        if len(batch) == BATCH_SIZE or len(keys | {features[i][0]}) > max_adapters:
            yield _group_by_adapter(batch, features)
            batch, keys = [], set()
        batch.append(i)
        keys.add(features[i][0])
    if batch:
        yield _group_by_adapter(batch, features)


def _group_by_adapter(batch: list[int], features: KeyedFeatures[Key]) -> list[int]:
    """Sort a batch so that rows of an adapter are consecutive, the most frequent adapter first."""
    counts = Counter(features[i][0] for i in batch)
    rank = {key: place for place, (key, _) in enumerate(counts.most_common())}
    return sorted(batch, key=lambda i: rank[features[i][0]])


def _forward_batch(
    rows: Sequence[tuple[LoadedAdapter, Feature]], router: Router, inputs: Inputs
) -> Iterator[tuple[list[int], Sequence[FeatureOutput]]]:
    """Yield indices of rows and their outputs: of generated texts, of all routed rows, then of each other adapter."""
    generated, routed = [], []
    others: dict[LoadedAdapter, list[int]] = {}
    for i, (loaded, feature) in enumerate(rows):
        if loaded.task.outputs.generation(feature):
            generated.append(i)
        elif loaded.is_routed:
            routed.append(i)
        else:
            others.setdefault(loaded, []).append(i)
    if generated:
        yield generated, generate_texts([rows[i] for i in generated], router, inputs)
    if routed:
        yield routed, _forward_routed([rows[i] for i in routed], router, inputs)
    for loaded, indices in others.items():
        yield indices, forward(loaded.task, loaded.model, inputs, [rows[i][1] for i in indices])


def _forward_routed(rows: Sequence[tuple[LoadedAdapter, Feature]], router: Router, inputs: Inputs) -> list[Tensor]:
    """Pad the rows to one batch and run it through the base once."""
    features = [feature for _, feature in rows]
    batch = {name: tensor.to(router.device) for name, tensor in inputs.pad(features).items()}
    return forward_rows([loaded for loaded, _ in rows], batch, router, inputs, features)


def forward_rows(
    rows: Sequence[LoadedAdapter],
    batch: Mapping[str, Tensor],
    router: Router,
    inputs: Inputs,
    features: Sequence[Feature] = (),
) -> list[Tensor]:
    """Compute the output of each row of a batch by its adapter, without padding: the base first, then the heads.

    One pass of the base serves all adapters whose classes call it alike.

    Args:
        rows: The adapter of each row; rows of one adapter are consecutive.
        batch: Inputs of the base, (batch, tokens) each.
        router: The base.
        inputs: The modality of the batch.
        features: Those of the rows, for tasks whose output depends on labels.
    """
    outputs: dict[int, Tensor] = {}
    for group in _group_calls(list(group_segments(rows)), batch, router):
        states = _forward_group(group, router)
        for (loaded, part, _), state in zip(group, states, strict=True):
            row_outputs = _apply_head(loaded, router, state, _rows_of(batch, part), features[part], inputs)
            outputs |= zip(range(part.start, part.stop), row_outputs, strict=True)
    return [outputs[i] for i in range(len(rows))]


Call = tuple[LoadedAdapter, slice, Arguments | None]
"""An adapter, its rows, and the arguments with which its model's class calls the base for them."""


def _rows_of(batch: Mapping[str, Tensor], part: slice) -> dict[str, Tensor]:
    return {name: tensor[part] for name, tensor in batch.items()}


def _group_calls(
    segments: Sequence[tuple[LoadedAdapter, slice]], batch: Mapping[str, Tensor], router: Router
) -> list[list[Call]]:
    """Group the adapters whose rows can share a pass of the base; one that does not call it as a whole is alone."""
    groups: dict[Any, list[Call]] = {}
    for loaded, part in segments:
        arguments = record_call(loaded.model, router.tree, _rows_of(batch, part))
        layout = part.start if arguments is None else layout_of(arguments)
        groups.setdefault(layout, []).append((loaded, part, arguments))
    return list(groups.values())


def _forward_group(group: Sequence[Call], router: Router) -> list[Any]:
    """The base's output for the rows of each adapter of a group; None for a class that does not call it as a whole."""
    calls = [arguments for _, _, arguments in group if arguments is not None]
    if not calls:
        return [None]
    rows = [loaded.modules for loaded, part, _ in group for _ in range(part.start, part.stop)]
    states, start, parts = router.forward(rows, join_arguments(calls)), 0, []
    for _, part, _ in group:
        parts.append(slice_output(states, slice(start, start := start + part.stop - part.start)))
    return parts


def _apply_head(
    loaded: LoadedAdapter,
    router: Router,
    states: Any,
    batch: Mapping[str, Tensor],
    features: Sequence[Feature],
    inputs: Inputs,
) -> list[Tensor]:
    """Compute the outputs of the rows of one adapter."""
    head, mask = loaded.task.head, inputs.mask(batch)
    batch = {**batch, **head.extra_inputs(features, mask)}
    if states is None:
        output = _forward_class(loaded, router, batch)
    else:
        if head.labels:  # a trained head computes in fp32, the base's own head in the base's precision
            states = to_float32(states)
        output = apply_head(loaded.model, router.tree, states, batch)
    is_labelled = features and all(feature.labels is not None for feature in features)
    return head.compute_outputs(output, head.stack_labels(features, mask) if is_labelled else None, mask)


def _forward_class(loaded: LoadedAdapter, router: Router, batch: Mapping[str, Tensor]) -> Any:
    """Run the forward of the model's class on the routed modules of the base, for the rows of one adapter."""
    num_rows, dtype = len(next(iter(batch.values()))), next(router.tree.parameters()).dtype
    model = with_backbone(loaded.model, router.tree)
    with (
        router.routing_rows([loaded.modules] * num_rows),
        torch.autocast(router.device.type, dtype, enabled=dtype != torch.float32),
    ):
        return model(**batch)

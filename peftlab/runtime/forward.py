"""Run features of any adapters through the one base, in as few forward passes as possible."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor

from peftlab.runtime.adapter_template import LoadedAdapter
from peftlab.runtime.generation import generate_texts
from peftlab.runtime.routing import Router, apply_head, group_segments, slice_output, to_float32
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
    """Compute the output of each row of a batch by its adapter, without padding: one pass of the base, then the heads.

    Args:
        rows: The adapter of each row; rows of one adapter are consecutive.
        batch: Inputs of the base, (batch, tokens) each.
        router: The base.
        inputs: The modality of the batch.
        features: Those of the rows, for tasks whose output depends on labels.
    """
    states = router.forward([loaded.modules for loaded in rows], batch)
    return [
        row_output
        for loaded, part in group_segments(rows)
        for row_output in _apply_head(loaded, states, batch, part, features[part], inputs)
    ]


def _apply_head(
    loaded: LoadedAdapter,
    states: Any,
    batch: Mapping[str, Tensor],
    part: slice,
    features: Sequence[Feature],
    inputs: Inputs,
) -> list[Tensor]:
    """Compute the outputs of the rows in `part`, which belong to one adapter."""
    head, part_batch = loaded.task.head, {name: tensor[part] for name, tensor in batch.items()}
    part_states = slice_output(states, part)
    if head.labels:  # a trained head computes in fp32, the base's own head in the base's precision
        part_states = to_float32(part_states)
    mask = inputs.mask(part_batch)
    output = apply_head(loaded.model, part_states, part_batch | head.extra_inputs(features, mask))
    is_labelled = features and all(feature.labels is not None for feature in features)
    return head.compute_outputs(output, head.stack_labels(features, mask) if is_labelled else None, mask)

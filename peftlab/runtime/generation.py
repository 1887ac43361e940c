"""Generate texts, each row by its own adapter, in as few runs of `generate` as possible.

At every step the base's modules look up which adapter each row has (`routing.py`), so rows of any number of adapters
are generated in one batch, by greedy decoding, sampling or beam search, with one key-value cache. Adapters that are
added, removed or published during a run do not change it.
"""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel

from peftlab.runtime.adapter_template import LoadedAdapter
from peftlab.runtime.backbones import with_backbone
from peftlab.runtime.low_rank import cached_stacks
from peftlab.runtime.routing import Router
from peftlab.runtime.token_embeddings import has_token_embeddings
from peftlab.tasks import Feature
from peftlab.tasks.generation.generate import generate
from peftlab.tasks.inputs.inputs import Inputs
from peftlab.tasks.outputs import Continuation, TextGeneration

Rows = Sequence[tuple[LoadedAdapter, Feature]]
"""Each row's adapter and prompt; rows of one adapter are consecutive."""


@torch.inference_mode()
def generate_texts(rows: Rows, router: Router, inputs: Inputs, **generate_options: Any) -> list[Continuation]:
    """Generate a text for each row, in order; `generate_options` are passed on to Transformers' `generate`."""
    texts: dict[int, Continuation] = {}
    for indices in _group_rows(rows, router):
        texts |= zip(indices, _generate([rows[i] for i in indices], router, inputs, generate_options), strict=True)
    return [texts[i] for i in range(len(rows))]


def _group_rows(rows: Rows, router: Router) -> list[list[int]]:
    """Group the indices of rows that one run generates: equal settings, and adapters that share cache and head."""
    groups: dict[Any, list[int]] = {}
    for i, (loaded, feature) in enumerate(rows):
        is_shared = loaded.is_routed and _shares_cache(loaded, router) and not has_token_embeddings(loaded.model)
        settings = _generation(loaded, feature).key
        groups.setdefault((settings, None if is_shared else id(loaded)), []).append(i)
    return list(groups.values())


def _shares_cache(loaded: LoadedAdapter, router: Router) -> bool:
    """Whether an adapter uses the base's attention; its own attention would write to the cache of all rows."""
    forwards = (router.base_module(name).forward for name in loaded.modules)
    return not any("past_key_values" in inspect.signature(forward).parameters for forward in forwards)


def _generate(rows: Rows, router: Router, inputs: Inputs, generate_options: dict[str, Any]) -> list[Continuation]:
    model, routing = routed_model([loaded for loaded, _ in rows], router)
    with routing, cached_stacks():
        return generate(_generation(*rows[0]), model, inputs, [feature for _, feature in rows], **generate_options)


def routed_model(
    adapters: Sequence[LoadedAdapter], router: Router
) -> tuple[PreTrainedModel, AbstractContextManager[None]]:
    """The model that generates, and the context in which it sends each row through its adapter."""
    first = adapters[0]
    if not first.is_routed:
        return first.model, nullcontext()
    return with_backbone(first.model, router.tree), router.routing_rows([loaded.modules for loaded in adapters])


def _generation(loaded: LoadedAdapter, feature: Feature) -> TextGeneration:
    generation = loaded.task.outputs.generation(feature)
    assert generation is not None  # `forward.py` computes all other features
    return generation

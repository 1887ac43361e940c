"""Texts that adapters write, each row by its own, in as few runs of `generate` as can be (see `tasks/writing.py`).

The base's modules look up whose the rows are (`routing.py`) at every step, so rows of any number of adapters are
written side by side, greedily, by drawing or by beams, with one cache of keys and values. It belongs to this run alone:
what joins, leaves or is published meanwhile touches neither.
"""

import inspect
import json
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
from peftlab.tasks import Continuation, Feature
from peftlab.tasks.generation.generate import written
from peftlab.tasks.inputs.inputs import Inputs

Asked = Sequence[tuple[LoadedAdapter, Feature]]


@torch.inference_mode()
def generate_texts(asked: Asked, router: Router, inputs: Inputs, **how: Any) -> list[Continuation]:
    """What is written for each feature, in order; rows of an adapter stand together. `how` is handed to `generate`."""
    given: dict[int, Continuation] = {}
    for places in _runs(asked, router):
        given |= zip(places, _run([asked[i] for i in places], router, inputs, how), strict=True)
    return [given[i] for i in range(len(asked))]


def _runs(asked: Asked, router: Router) -> list[list[int]]:
    """Places in `asked` that are written together: those of the same settings whose adapters share cache and head."""
    groups: dict[Any, list[int]] = {}
    for i, (loaded, _) in enumerate(asked):
        together = loaded.routed and _shares_cache(loaded, router) and not has_token_embeddings(loaded.model)
        alone = None if together else id(loaded)
        settings = json.dumps([loaded.task.options["generation"], loaded.task.state], sort_keys=True)
        groups.setdefault((settings, alone), []).append(i)
    return list(groups.values())


def _shares_cache(loaded: LoadedAdapter, router: Router) -> bool:
    """Not if it has attention of its own: that writes into the cache of the whole batch."""
    places = (router.bare(name).forward for name in loaded.own)
    return not any("past_key_values" in inspect.signature(forward).parameters for forward in places)


def _run(asked: Asked, router: Router, inputs: Inputs, how: dict[str, Any]) -> list[Continuation]:
    first = asked[0][0]
    model, routing_rows = _model(first, [loaded for loaded, _ in asked], router)
    with routing_rows, cached_stacks():
        return written(first.task, model, inputs, [feature for _, feature in asked], **how)


def _model(
    first: LoadedAdapter, adapters_by_key: Sequence[LoadedAdapter], router: Router
) -> tuple[PreTrainedModel, AbstractContextManager[None]]:
    """What writes, and the block in which it knows whose the rows are."""
    if not first.routed:
        return first.model, nullcontext()
    return with_backbone(first.model, router.tree), router.routing_rows([loaded.own for loaded in adapters_by_key])

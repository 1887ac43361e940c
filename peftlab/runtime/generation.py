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
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from peftlab.runtime.adapter_template import Resident
from peftlab.runtime.backbones import with_backbone
from peftlab.runtime.low_rank import stacks_kept
from peftlab.runtime.routing import Router
from peftlab.runtime.token_embeddings import has_rows
from peftlab.tasks import Continuation, Feature
from peftlab.tasks.generation.generate import written

Asked = Sequence[tuple[Resident, Feature]]


@torch.inference_mode()
def continuations(asked: Asked, router: Router, tokenizer: PreTrainedTokenizerBase, **how: Any) -> list[Continuation]:
    """What is written for each feature, in order; rows of an adapter stand together. `how` is handed to `generate`."""
    given: dict[int, Continuation] = {}
    for places in _runs(asked, router):
        given |= zip(places, _run([asked[i] for i in places], router, tokenizer, how), strict=True)
    return [given[i] for i in range(len(asked))]


def _runs(asked: Asked, router: Router) -> list[list[int]]:
    """Places in `asked` that are written together: those of the same settings whose adapters share cache and head."""
    groups: dict[Any, list[int]] = {}
    for i, (resident, _) in enumerate(asked):
        together = resident.routed and _shares_cache(resident, router) and not has_rows(resident.model)
        alone = None if together else id(resident)
        settings = json.dumps([resident.task.options["generation"], resident.task.learned], sort_keys=True)
        groups.setdefault((settings, alone), []).append(i)
    return list(groups.values())


def _shares_cache(resident: Resident, router: Router) -> bool:
    """Not if it has attention of its own: that writes into the cache of the whole batch."""
    places = (router.bare(name).forward for name in resident.own)
    return not any("past_key_values" in inspect.signature(forward).parameters for forward in places)


def _run(asked: Asked, router: Router, tokenizer: PreTrainedTokenizerBase, how: dict[str, Any]) -> list[Continuation]:
    first = asked[0][0]
    model, carrying = _model(first, [resident for resident, _ in asked], router)
    with carrying, stacks_kept():
        return written(first.task, model, tokenizer, [feature for _, feature in asked], **how)


def _model(
    first: Resident, residents: Sequence[Resident], router: Router
) -> tuple[PreTrainedModel, AbstractContextManager[None]]:
    """What writes, and the block in which it knows whose the rows are."""
    if not first.routed:
        return first.model, nullcontext()
    return with_backbone(first.model, router.tree), router.carrying([resident.own for resident in residents])

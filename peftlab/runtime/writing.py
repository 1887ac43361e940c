"""Texts that go on, each by its own adapter, in as few runs of Transformers' `generate` as can be.

The base's modules look up whose the rows are (`routing.py`) at every step, so rows of any number of adapters go on side
by side, greedily, by drawing or by beams, with one cache of keys and values. It belongs to this run alone: what joins,
leaves or is published meanwhile touches neither.
"""

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from peftlab.runtime.low_rank import stacks_kept
from peftlab.runtime.moulds import Resident
from peftlab.runtime.routing import Router
from peftlab.runtime.token_rows import has_rows
from peftlab.runtime.trees import with_child
from peftlab.tasks import Continuation, Feature

Asked = Sequence[tuple[Resident, Feature]]
DRAWING = ("temperature", "top_p", "top_k")  # settings that mean something with do_sample alone


@torch.inference_mode()
def continuations(asked: Asked, router: Router, tokenizer: PreTrainedTokenizerBase, **how: Any) -> list[Continuation]:
    """What follows each feature, in order; rows of an adapter stand together. `how` is handed on to `generate`.

    Shapes inside: prompts are padded on the left to (rows, tokens), and each step computes (rows × beams, 1).
    """
    given: dict[int, Continuation] = {}
    for places in _runs(asked, router):
        given |= zip(places, _run([asked[i] for i in places], router, tokenizer, how), strict=True)
    return [given[i] for i in range(len(asked))]


def _runs(asked: Asked, router: Router) -> list[list[int]]:
    """Places in `asked` that go on together: those of the same settings whose adapters can share cache and head."""
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


def _run(
    asked: Asked, router: Router, tokenizer: PreTrainedTokenizerBase, how: Mapping[str, Any]
) -> Iterator[Continuation]:
    first = asked[0][0]
    endings = first.task.endings(tokenizer)
    settings = _settings(first, endings, tokenizer)
    model, carrying = _model(first, [resident for resident, _ in asked], router, settings.num_beams or 1)
    inputs = tokenizer.pad([feature.inputs for _, feature in asked], return_tensors="pt", padding_side="left")
    tensors = {name: cast(torch.Tensor, tensor).to(model.device) for name, tensor in inputs.items()}
    with carrying, stacks_kept():
        written = cast(Any, model).generate(**tensors, generation_config=settings, tokenizer=tokenizer, **how)
    for tokens in written[:, tensors["input_ids"].shape[1] :].cpu():
        yield _continuation(tokens, endings, settings, tokenizer)


def _model(
    first: Resident, residents: Sequence[Resident], router: Router, beams: int
) -> tuple[PreTrainedModel, AbstractContextManager[None]]:
    """What goes on, and the block in which it knows whose the rows are."""
    if not first.routed:
        return first.model, nullcontext()
    model = cast(PreTrainedModel, with_child(first.model, first.model.base_model_prefix, router.tree))
    return model, router.carrying([resident.own for resident in residents], beams)


def _settings(resident: Resident, endings: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """The adapter's own; it ends with any of `endings`, and with what ends texts of its base."""
    asked = {k: v for k, v in resident.task.options["generation"].items() if k != "stop_strings"}
    if not asked.get("do_sample"):
        asked = {name: value for name, value in asked.items() if name not in DRAWING}
    of_base = getattr(resident.model.generation_config, "eos_token_id", None)
    ids = {*(of_base if isinstance(of_base, list) else [of_base]), *(_token(text, tokenizer) for text in endings)}
    written = [text for text in endings if _token(text, tokenizer) is None]
    return GenerationConfig(
        **asked,
        eos_token_id=sorted(token for token in ids if token is not None),
        pad_token_id=tokenizer.pad_token_id,
        stop_strings=written or None,
    )


def _token(text: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The number of the one special token that this is, if it is one."""
    return tokenizer.get_added_vocab().get(text)


def _continuation(
    tokens: torch.Tensor, endings: Sequence[str], settings: GenerationConfig, tokenizer: PreTrainedTokenizerBase
) -> Continuation:
    """Up to where the first ending is."""
    numbers = tokens.tolist()
    stops = [i for i, number in enumerate(numbers) if number in cast(list[int], settings.eos_token_id)]
    text = cast(str, tokenizer.decode(numbers[: stops[0]] if stops else numbers, skip_special_tokens=True))
    ends = [place for ending in endings if (place := text.find(ending)) >= 0]
    return Continuation(text[: min(ends)] if ends else text, bool(stops or ends))

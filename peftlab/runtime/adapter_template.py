"""Adapters that are alike but for their numbers are made once by PEFT; of this one, all others are poured.

PEFT walks through the whole model for each adapter that it loads. Here the first adapter of a kind (configuration,
shapes, task) leaves a mould: what it has of its own by module of the base, and its head. Another of that kind takes
copies of these few modules with its own tensors in them; the time this takes knows nothing of the base or of how many
are loaded. The first one's tensors were all in their places, so those of equal names and shapes are.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftlab.runtime.adapter_files import AdapterFiles
from peftlab.runtime.adapter_loading import Attached
from peftlab.runtime.backbones import backbone_in, path_of_backbone, with_backbone
from peftlab.runtime.low_rank import LowRankUpdate, plain_lora
from peftlab.runtime.module_clone import replace_tensors
from peftlab.runtime.routing import AdapterModule, Router, RoutingError
from peftlab.runtime.token_embeddings import remove_token_embeddings, replace_token_wrappers
from peftlab.store import Adapter
from peftlab.tasks import Task

HEAD = ""
"""Where in a task's model the tensors are that are not in its backbone."""


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter that is ready to answer.

    `own` is what it has for modules of the base, by their names; `model` its task's Transformers class with its head.
    An adapter that changes the base as a whole cannot share passes: it is not `routed`, and `model` is all of it.
    """

    adapter: Adapter
    task: Task
    own: Mapping[str, AdapterModule]
    model: PreTrainedModel
    routed: bool

    @property
    def bare(self) -> "LoadedAdapter":
        """The base alone, with the same head, or its own."""
        return replace(self, own={}, model=cast(PreTrainedModel, remove_token_embeddings(self.model)), routed=True)

    @property
    def updates(self) -> Iterator[LowRankUpdate]:
        """Those of its own that are LoRA's."""
        return (own for own in self.own.values() if isinstance(own, LowRankUpdate))


def extract_adapter(
    read: AdapterFiles, attached: Attached, router: Router
) -> tuple[LoadedAdapter, "AdapterTemplate | None"]:
    """An adapter whose model PEFT has made, and what others of its kind are poured of, if they can be."""
    model = attached.model
    token_rows = replace_token_wrappers(model)
    backbone, path = backbone_in(model, router.tree), path_of_backbone(model)
    try:
        own = router.places(backbone, {name.removeprefix(path) for name in attached.held})
    except RoutingError:
        model.to(model.base_model.dtype)
        return LoadedAdapter(read.adapter, read.task, {}, model, routed=False), None
    head = with_backbone(model, nn.Identity(), router.tree)
    names = None if attached.places is None or token_rows else _names(attached.places, own, head, path)
    if names is None:
        return LoadedAdapter(read.adapter, read.task, own, head, routed=True), None
    mould = AdapterTemplate(
        {name: _module_factory(module, names.get(name, {}), router.bare(name)) for name, module in own.items()},
        _Module(head, names.get(HEAD, {})),
    )
    return mould.instantiate(read), mould


class AdapterTemplate:
    """What all adapters of a kind have in common: how each module of their own, and their head, is poured."""

    def __init__(self, own: Mapping[str, "ModuleFactory"], head: "_Module") -> None:
        self._own = own
        self._head = head

    def instantiate(self, read: AdapterFiles) -> LoadedAdapter:
        """Another adapter of this kind, ready to answer."""
        own = {name: pouring(read.tensors) for name, pouring in self._own.items()}
        head = cast(PreTrainedModel, self._head(read.tensors))
        return LoadedAdapter(read.adapter, read.task, own, head, routed=True)


ModuleFactory = Callable[[Mapping[str, Tensor]], AdapterModule]
"""Makes something of the tensors of a file."""


class _Module:
    """A module with its tensors from a file, by their names in it → in the file."""

    def __init__(self, module: nn.Module, names: Mapping[str, str]) -> None:
        made = module.state_dict(keep_vars=True)
        self._made = {name: torch.empty(0, dtype=made[name].dtype, device=made[name].device) for name in names}
        self._module = replace_tensors(module, self._made)
        self._names = names

    def __call__(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        like = self._made
        return replace_tensors(self._module, {mine: tensors[name].to(like[mine]) for mine, name in self._names.items()})


def _module_factory(module: nn.Module, names: Mapping[str, str], bare: nn.Module) -> ModuleFactory:
    """A plain LoRA's layer is poured as its update alone."""
    layer = plain_lora(module)
    if layer is None:
        return _Module(module, names)
    down, up = (names[f"{part}.{layer.adapter}.weight"] for part in ("lora_A", "lora_B"))
    return lambda tensors: LowRankUpdate(bare, tensors[down], tensors[up], layer.scaling)


def _names(
    places: Mapping[str, str], own: Collection[str], head: nn.Module, prefix: str
) -> dict[str, dict[str, str]] | None:
    """For each of `own`, and the head, its tensors' names in it → in the file; None if one belongs to none of them."""
    names: dict[str, dict[str, str]] = {}
    in_head = head.state_dict(keep_vars=True)
    for name, place in places.items():
        inside = place.removeprefix(prefix)
        within = inside != place or not prefix  # where the backbone has no path, the head has no such modules
        owner = next((path for path in own if inside.startswith(f"{path}.")), None) if within else HEAD
        if owner is None or (owner == HEAD and inside not in in_head):
            return None
        names.setdefault(owner, {})[inside.removeprefix(f"{owner}.") if owner else inside] = name
    return names

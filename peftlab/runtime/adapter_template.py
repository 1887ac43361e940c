"""Templates of adapters: PEFT builds the first adapter of a kind; later ones are instantiated from its template.

PEFT walks through the whole model for each adapter that it loads. Here the first adapter of a kind (configuration,
shapes, task) leaves a template: its modules, by the base's module that each replaces, and its head. A later adapter of
that kind copies these few modules and puts its own tensors into them. This takes the same time for any base and for any
number of loaded adapters. No check is skipped: the first adapter's tensors all fit, so tensors of equal names and
shapes fit too.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftlab.runtime.adapter_files import AdapterFiles
from peftlab.runtime.adapter_loading import AttachedAdapter
from peftlab.runtime.backbones import backbone_in, path_of_backbone, with_backbone
from peftlab.runtime.low_rank import LowRankUpdate, plain_lora
from peftlab.runtime.module_clone import replace_tensors
from peftlab.runtime.routing import AdapterModule, ModulesByName, Router, RoutingError
from peftlab.runtime.token_embeddings import remove_token_embeddings, replace_token_wrappers
from peftlab.store import Adapter
from peftlab.tasks import Task

HEAD = ""
"""The key of the head, where other keys are names of the base's modules."""


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter that is ready to predict.

    Attributes:
        adapter: The published adapter.
        task: Its task, with its labels.
        modules: Its modules, by the name of the base's module that each replaces.
        model: The task's Transformers model with its head; with its delta too if it is not routed.
        is_routed: Whether its rows share forward passes with other adapters' rows; impossible for an adapter that
            changes the input of the whole base.
    """

    adapter: Adapter
    task: Task
    modules: ModulesByName
    model: PreTrainedModel
    is_routed: bool

    @property
    def base_only(self) -> "LoadedAdapter":
        """The same head, or the base's own, on the base without the adapter's delta."""
        model = cast(PreTrainedModel, remove_token_embeddings(self.model))
        return replace(self, modules={}, model=model, is_routed=True)

    @property
    def updates(self) -> Iterator[LowRankUpdate]:
        """Its plain LoRA modules."""
        return (module for module in self.modules.values() if isinstance(module, LowRankUpdate))


def extract_adapter(
    files: AdapterFiles, attached: AttachedAdapter, router: Router
) -> tuple[LoadedAdapter, "AdapterTemplate | None"]:
    """Take an adapter's modules out of the model that PEFT built; return its template too, if it can have one."""
    model = attached.model
    has_token_embeddings = replace_token_wrappers(model)
    backbone, path = backbone_in(model, router.tree), path_of_backbone(model)
    try:
        modules = router.extract_modules(backbone, {name.removeprefix(path) for name in attached.full_modules})
    except RoutingError:
        model.to(model.base_model.dtype)
        return LoadedAdapter(files.adapter, files.task, {}, model, is_routed=False), None
    head = with_backbone(model, nn.Identity(), router.tree)
    names = None
    if attached.parameter_names is not None and not has_token_embeddings:
        names = _names_by_module(attached.parameter_names, modules, head, path)
    if names is None:
        return LoadedAdapter(files.adapter, files.task, modules, head, is_routed=True), None
    factories = {
        name: _make_factory(module, names.get(name, {}), router.base_module(name)) for name, module in modules.items()
    }
    template = AdapterTemplate(factories, _ModuleTemplate(head, names.get(HEAD, {})))
    return template.instantiate(files), template


ModuleFactory = Callable[[Mapping[str, Tensor]], AdapterModule]
"""Makes an adapter's module from the tensors of its file."""


class AdapterTemplate:
    """What all adapters of a kind share: a factory for each of their modules, and the template of their head."""

    def __init__(self, factories: Mapping[str, ModuleFactory], head: "_ModuleTemplate") -> None:
        self._factories = factories
        self._head = head

    def instantiate(self, files: AdapterFiles) -> LoadedAdapter:
        """Make another adapter of this kind."""
        modules = {name: factory(files.tensors) for name, factory in self._factories.items()}
        head = cast(PreTrainedModel, self._head(files.tensors))
        return LoadedAdapter(files.adapter, files.task, modules, head, is_routed=True)


class _ModuleTemplate:
    """Copies a module with tensors from a file; `names` maps their names in the module to those in the file."""

    def __init__(self, module: nn.Module, names: Mapping[str, str]) -> None:
        state = module.state_dict(keep_vars=True)
        self._empty = {name: torch.empty(0, dtype=state[name].dtype, device=state[name].device) for name in names}
        self._module = replace_tensors(module, self._empty)  # the template keeps none of the first adapter's tensors
        self._names = names

    def __call__(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        state = {name: tensors[file_name].to(self._empty[name]) for name, file_name in self._names.items()}
        return replace_tensors(self._module, state)


def _make_factory(module: nn.Module, names: Mapping[str, str], base_layer: nn.Module) -> ModuleFactory:
    """A factory for modules like this one; for a plain LoRA it makes the update alone."""
    layer = plain_lora(module)
    if layer is None:
        return _ModuleTemplate(module, names)
    down, up = (names[f"{part}.{layer.adapter}.weight"] for part in ("lora_A", "lora_B"))
    return lambda tensors: LowRankUpdate(base_layer, tensors[down], tensors[up], layer.scaling)


def _names_by_module(
    parameter_names: Mapping[str, str], modules: Collection[str], head: nn.Module, prefix: str
) -> dict[str, dict[str, str]] | None:
    """For each module and the head: a tensor's name in it → its name in the file; None if one is in none of them."""
    names: dict[str, dict[str, str]] = {}
    head_state = head.state_dict(keep_vars=True)
    for file_name, parameter_name in parameter_names.items():
        name = parameter_name.removeprefix(prefix)
        in_backbone = name != parameter_name or not prefix  # without a prefix, the head has no such modules
        owner = next((path for path in modules if name.startswith(f"{path}.")), None) if in_backbone else HEAD
        if owner is None or (owner == HEAD and name not in head_state):
            return None
        names.setdefault(owner, {})[name.removeprefix(f"{owner}.") if owner else name] = file_name
    return names

"""Base classes of our own PEFT tuners, and how they are registered with PEFT."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from torch import Tensor, nn


@dataclass
class CustomTunerConfig(PeftConfig):
    """The modules that a tuner changes; all fields are PEFT's."""

    method: ClassVar[str]
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = cast(Any, PeftType)(self.method.upper())


class CustomTunerLayer(nn.Module, BaseTunerLayer):
    """A module of the base, and the parameters that each adapter adds to it.

    The parameters named first in `adapter_layer_names` are stored by adapter name, so their keys are the layer's
    adapters. `merge_error` says why adapters cannot be merged into the module's weights.
    """

    merge_error: ClassVar[str]
    base_layer: nn.Module
    # attributes of BaseTunerLayer, which has no types
    adapter_layer_names: tuple[str, ...]
    active_adapters: list[str]
    disable_adapters: bool
    get_base_layer: Callable[[], nn.Module]
    set_adapter: Callable[..., None]
    _cast_input_dtype: Callable[[Tensor, torch.dtype], Tensor]

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._active_adapter, self._disable_adapters = adapter_name, False

    def update_layer(self, adapter_name: str, config: Any) -> None:
        """Add the parameters of an adapter."""
        raise NotImplementedError

    @property
    def adapters(self) -> list[str]:
        """Names of the adapters that this layer has."""
        return list(getattr(self, self.adapter_layer_names[0]))

    @property
    def active(self) -> list[str]:
        """Names of the adapters that change the output."""
        return [] if self.disable_adapters else [name for name in self.active_adapters if name in self.adapters]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse to merge.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(self.merge_error)

    def unmerge(self) -> None:
        """Do nothing: nothing was merged."""


class CustomTunerModel(BaseTuner):
    """A base whose target modules are instances of `tuner_layer_cls`."""

    prefix: str
    tuner_layer_cls: type[CustomTunerLayer]
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}  # see methods/architectures.py

    def _create_and_replace(
        self,
        peft_config: CustomTunerConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config)
            return
        layer = self.tuner_layer_cls(target, adapter_name)
        layer.update_layer(adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(new_module, CustomTunerLayer):
            super()._replace_module(parent, child_name, new_module, child)
        else:  # the adapters are unloaded; PEFT would need a weight, which not every module has
            setattr(parent, child_name, new_module)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """`….prefix_encoder.default.embedding.weight` without `default`; PEFT only looks at the second last part."""
        return re.sub(rf"(\.{cls.prefix}\w+)\.{re.escape(adapter_name)}(?=\.|$)", r"\1", key)

    def _check_merge_allowed(self) -> None:
        raise ValueError(self.tuner_layer_cls.merge_error)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Refuse PEFT's `adapter_names`, which PEFT would otherwise ignore.

        Raises:
            ValueError: the call names an adapter for each row.
        """
        if kwargs.pop("adapter_names", None) is not None:
            raise ValueError(
                f"{type(self).__name__} does not take `adapter_names`. peftlab.load(…) mixes rows of any adapters."
            )
        yield


def move_like(like: Tensor, module: nn.Module) -> nn.Module:
    """Move a module to the device and the dtype of `like`, unless `like` is quantized.

    A module on the meta device stays there: PEFT loads its weights later.
    """
    if next(module.parameters()).device.type == "meta":
        return module
    return module.to(device=like.device, dtype=like.dtype if like.is_floating_point() else None)


def register_tuner(config: type[CustomTunerConfig], model: type[CustomTunerModel]) -> None:
    """Register a tuner with PEFT; a member is added to PEFT's enum of types first, because it is closed."""
    name = config.method.upper()
    if name in PeftType.__members__:
        return
    member = str.__new__(PeftType, name)
    member._name_, member._value_ = name, name
    PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
    PeftType._member_names_.append(name)
    type.__setattr__(PeftType, name, member)  # Python ≥ 3.12 looks up members here
    register_peft_method(name=config.method, config_cls=config, model_cls=model)

"""What our own tuners of PEFT have in common: how PEFT gets to know them, and one adapter for each row of a batch."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from torch import Tensor, nn

BARE_BASE = "__base__"  # PEFT's word for a row without an adapter
_rows: ContextVar[Sequence[str] | None] = ContextVar("the adapter of each row", default=None)


@dataclass
class OwnConfig(PeftConfig):
    """Where a tuner of ours goes.

    Args:
        target_modules, exclude_modules, modules_to_save, layers_to_transform, layers_pattern: As in PEFT.
    """

    method: ClassVar[str]
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = cast(Any, PeftType)(self.method.upper())


class OwnLayer(nn.Module, BaseTunerLayer):
    """A module of a base, with something beside it by adapter name; what cannot be merged into the module's weights.

    The first of `adapter_layer_names` is the dictionary that tells which adapters are here.
    """

    unmergeable: ClassVar[str]
    base_layer: nn.Module
    # of BaseTunerLayer, which has no types
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
        """Add an adapter."""
        raise NotImplementedError

    @property
    def here(self) -> list[str]:
        """Names of the adapters that this layer has something of."""
        return list(getattr(self, self.adapter_layer_names[0]))

    @property
    def active(self) -> list[str]:
        """Those that count where the batch does not say otherwise."""
        return [] if self.disable_adapters else [name for name in self.active_adapters if name in self.here]

    def by_row(self, batch: int) -> list[str | None] | None:
        """The adapter of each of `batch` rows, None for the bare base; None where all go through the active ones.

        A beam search has several rows for each that was named, one after the other.

        Raises:
            ValueError: not as many names as rows.
        """
        names = _rows.get()
        if names is None or self.disable_adapters:
            return None
        if batch % len(names):
            raise ValueError(f"{batch} rows need {batch} adapter names, not {len(names)}")
        return [name if name in self.here else None for name in names for _ in range(batch // len(names))]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Never."""
        raise NotImplementedError(self.unmergeable)

    def unmerge(self) -> None:
        """Nothing to do."""


class OwnModel(BaseTuner):
    """A base whose target modules are `tuner_layer_cls`es."""

    prefix: str
    tuner_layer_cls: type[OwnLayer]
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}  # placement.py knows more than names

    def _create_and_replace(
        self,
        peft_config: OwnConfig,
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
        if isinstance(new_module, OwnLayer):
            super()._replace_module(parent, child_name, new_module, child)
        else:  # unloaded; PEFT would hand it a weight, which not every module has
            setattr(parent, child_name, new_module)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """`….prefix_encoder.default.embedding.weight` without `default`; PEFT's own looks only right before the end."""
        return re.sub(rf"(\.{cls.prefix}\w+)\.{re.escape(adapter_name)}(?=\.|$)", r"\1", key)

    def _check_merge_allowed(self) -> None:
        raise ValueError(self.tuner_layer_cls.unmergeable)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT's `adapter_names`: one adapter for each row of a batch."""
        names = kwargs.pop("adapter_names", None)
        if names is None:
            yield
            return
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        if unknown := sorted({*names} - {BARE_BASE, *self.peft_config}):
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")
        before = _rows.set(names)
        try:
            yield
        finally:
            _rows.reset(before)


def placed_as(like: Tensor, module: nn.Module) -> nn.Module:
    """On the device of `like` and in its dtype, unless it is quantized; PEFT may have made it on meta, to fill."""
    if next(module.parameters()).device.type == "meta":
        return module
    return module.to(device=like.device, dtype=like.dtype if like.is_floating_point() else None)


def register(config: type[OwnConfig], model: type[OwnModel]) -> None:
    """Add a method to PEFT's types: `register_peft_method` takes none that its closed enum does not name."""
    name = config.method.upper()
    if name in PeftType.__members__:
        return
    member = str.__new__(PeftType, name)
    member._name_, member._value_ = name, name
    PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
    PeftType._member_names_.append(name)
    type.__setattr__(PeftType, name, member)  # where Python ≥ 3.12 looks
    register_peft_method(name=config.method, config_cls=config, model_cls=model)

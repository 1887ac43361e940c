"""Bottleneck adapters as a tuner of PEFT, which has none: small two-layer networks on the residual stream of a base.

    A(h) = scaling · W_up · activation(W_down · h)

`houlsby` (Houlsby et al. 2019, arXiv:1902.00751) puts one after attention and one after the feed-forward network of
each layer, `pfeiffer` (Pfeiffer et al. 2021, arXiv:2005.00247) one after the feed-forward network, `parallel` (He et
al. 2022, arXiv:2110.04366) one beside it. Where exactly depends on the architecture: `methods/placement.py`.

Importing this module makes PEFT know the type BOTTLENECK, so that plain `PeftModel.from_pretrained` loads its adapters.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from torch import Tensor, nn
from torch.nn import functional

NAME = "bottleneck"
BARE_BASE = "__base__"  # PEFT's word for a row without an adapter
UNMERGEABLE = "a bottleneck is not linear, and no weight of the base could stand for it"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}
Update = Callable[[Tensor], Tensor]


def _after(base: nn.Module, update: Update, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """y + A(y): behind the module that ends a sub-layer."""
    y = base(x, *args, **kwargs)
    return y + update(y)


def _around_norm(base: nn.Module, update: Update, x: Tensor) -> Tensor:
    """LN(x + A(LN(x))), x being the sum of sub-layer and residual."""
    return base(x + update(base(x)))


def _beside(base: nn.Module, update: Update, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """F(x) + A(x): beside a module that is the whole sub-layer."""
    return base(x, *args, **kwargs) + update(x)


def _beside_residual(base: nn.Module, update: Update, inner: Tensor, residual: Tensor) -> Tensor:
    """LN(W inner + residual + A(residual)): BERT's output module is given the sub-layer's input as the residual."""
    return base(inner, residual + update(residual))


FORMS: dict[str, Callable[..., Tensor]] = {
    "after": _after,
    "around-norm": _around_norm,
    "beside": _beside,
    "beside-residual": _beside_residual,
}


@dataclass
class BottleneckConfig(PeftConfig):
    """All that makes a bottleneck adapter; every field is needed to load it again.

    Args:
        variant: Which paper's; told to people, computed from `form`.
        form: How a module's output is changed: a key of `FORMS`.
        hidden_size: Width of the residual stream.
        bottleneck_size: Width between down and up.
        activation: A key of `ACTIVATIONS`.
        scaling: Factor of the update.
        init: "near-identity" (normal, sd 0.01, Houlsby et al.) or "zero-up" (He et al.: the update begins as 0).
        target_modules, exclude_modules, modules_to_save, layers_to_transform, layers_pattern: As in PEFT.
    """

    variant: str = "pfeiffer"
    form: str = "after"
    hidden_size: int = 0
    bottleneck_size: int = 0
    activation: str = "relu"
    scaling: float = 1.0
    init: str = "near-identity"
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = cast(Any, PeftType)(NAME.upper())


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """Any module of a base, with bottlenecks by adapter name."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("activation", "scaling")
    base_layer: nn.Module
    bottleneck_down: nn.ModuleDict
    bottleneck_up: nn.ModuleDict
    # of BaseTunerLayer, which has no types
    active_adapters: list[str]
    disable_adapters: bool
    get_base_layer: Callable[[], nn.Module]
    set_adapter: Callable[..., None]
    _cast_input_dtype: Callable[[Tensor, torch.dtype], Tensor]

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.form = config.form
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()
        self.activation: dict[str, str] = {}
        self.scaling: dict[str, float] = {}
        self._active_adapter, self._disable_adapters = adapter_name, False
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add a bottleneck.

        Raises:
            ValueError: the ones that are here are of another form.
        """
        if config.form != self.form:
            raise ValueError(f"adapter '{adapter_name}' is of form '{config.form}', those beside it '{self.form}'")
        down, up = (
            nn.Linear(config.hidden_size, config.bottleneck_size),
            nn.Linear(config.bottleneck_size, config.hidden_size),
        )
        _initialize(down, up, config.init)
        like = next(self.get_base_layer().parameters())
        self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name] = _placed_as(like, down, up)
        self.activation[adapter_name], self.scaling[adapter_name] = config.activation, config.scaling
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Tensor:
        """What the base's module gives, with the update of the active adapters, or of one adapter a row."""
        active = [name for name in self.active_adapters if name in self.bottleneck_down]
        if self.disable_adapters or not (active or adapter_names):
            return self.base_layer(*args, **kwargs)
        update = partial(self._sum, active) if adapter_names is None else partial(self._by_row, adapter_names)
        return FORMS[self.form](self.base_layer, update, *args, **kwargs)

    def _sum(self, names: Sequence[str], h: Tensor) -> Tensor:
        return cast(Tensor, sum(self._update(name, h) for name in names))

    def _by_row(self, names: Sequence[str], h: Tensor) -> Tensor:
        """The update (batch, …, hidden) of each row by its own adapter; none for the bare base."""
        updates = torch.zeros_like(h)
        for name in set(names) - {BARE_BASE}:
            rows = [i for i, other in enumerate(names) if other == name]
            if name in self.bottleneck_down:
                updates[rows] = self._update(name, h[rows])
        return updates

    def _update(self, name: str, h: Tensor) -> Tensor:
        down, up = cast(nn.Linear, self.bottleneck_down[name]), self.bottleneck_up[name]
        inner = ACTIVATIONS[self.activation[name]](down(self._cast_input_dtype(h, down.weight.dtype)))
        return (up(inner) * self.scaling[name]).to(h.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Never: what lies between down and up is not linear."""
        raise NotImplementedError(UNMERGEABLE)

    def unmerge(self) -> None:
        """Nothing to do."""


def _initialize(down: nn.Linear, up: nn.Linear, init: str) -> None:
    for layer in (down, up):
        nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
        nn.init.zeros_(layer.bias)
    if init == "zero-up":
        nn.init.kaiming_uniform_(down.weight, a=5**0.5)
        nn.init.zeros_(up.weight)


def _placed_as(like: Tensor, *layers: nn.Linear) -> tuple[nn.Linear, ...]:
    """On the device of `like` and in its dtype, unless it is quantized; PEFT may have made them on meta, to fill."""
    if layers[0].weight.device.type == "meta":
        return layers
    dtype = like.dtype if like.is_floating_point() else None
    return tuple(layer.to(device=like.device, dtype=dtype) for layer in layers)


class BottleneckModel(BaseTuner):
    """A base whose target modules are `BottleneckLayer`s."""

    prefix = f"{NAME}_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}  # placement.py knows more than names

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
            return
        layer = BottleneckLayer(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _check_merge_allowed(self) -> None:
        raise ValueError(UNMERGEABLE)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT's `adapter_names`: one adapter for each row of a batch."""
        names = kwargs.pop("adapter_names", None)
        layers = [module for module in self.modules() if isinstance(module, BottleneckLayer)] if names else []
        if names and self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        known = {BARE_BASE, *(name for layer in layers for name in layer.bottleneck_down)}
        if names and (unknown := sorted(set(names) - known)):
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")
        hooks = [layer.register_forward_pre_hook(partial(_tell_rows, names), with_kwargs=True) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _tell_rows(names: Sequence[str], layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "adapter_names": names}


def _register() -> None:
    """Add BOTTLENECK to PEFT's types: `register_peft_method` takes none that its closed enum does not name."""
    name = NAME.upper()
    if name in PeftType.__members__:
        return
    member = str.__new__(PeftType, name)
    member._name_, member._value_ = name, name
    PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
    PeftType._member_names_.append(name)
    type.__setattr__(PeftType, name, member)  # where Python ≥ 3.12 looks
    register_peft_method(name=NAME, config_cls=BottleneckConfig, model_cls=BottleneckModel)


_register()

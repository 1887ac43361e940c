"""Bottleneck adapters as a PEFT tuner: small two-layer networks on the residual stream of a base.

    A(h) = scaling · W_up · activation(W_down · h)

`houlsby` (Houlsby et al. 2019, arXiv:1902.00751) puts one after attention and one after the feed-forward network of
each layer, `pfeiffer` (Pfeiffer et al. 2021, arXiv:2005.00247) one after the feed-forward network, `parallel` (He et
al. 2022, arXiv:2110.04366) one parallel to it. Where exactly depends on the architecture: `methods/architectures.py`.

Importing this module registers the type BOTTLENECK, so that plain `PeftModel.from_pretrained` loads its adapters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from peftlab.methods.tuners.custom_tuner import (
    CustomTunerConfig,
    CustomTunerLayer,
    CustomTunerModel,
    move_like,
    register_tuner,
)
from peftlab.recipe import Bottleneck

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}
Update = Callable[[Tensor], Tensor]


def _after(base: nn.Module, update: Update, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """y + A(y): after the last module of a sub-layer, with output y."""
    y = base(x, *args, **kwargs)
    return y + update(y)


def _wrap_norm(base: nn.Module, update: Update, x: Tensor) -> Tensor:
    """LN(x + A(LN(x))): around the norm after a sub-layer; x is the sum of sub-layer and residual."""
    return base(x + update(base(x)))


def _parallel(base: nn.Module, update: Update, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """F(x) + A(x): parallel to a module F that is a complete sub-layer."""
    return base(x, *args, **kwargs) + update(x)


def _parallel_residual(base: nn.Module, update: Update, inner: Tensor, residual: Tensor) -> Tensor:
    """LN(W inner + residual + A(residual)): BERT's output module gets the sub-layer's input as the residual."""
    return base(inner, residual + update(residual))


FORMS: dict[str, Callable[..., Tensor]] = {
    "after": _after,
    "around-norm": _wrap_norm,
    "beside": _parallel,
    "beside-residual": _parallel_residual,
}


@dataclass
class BottleneckConfig(CustomTunerConfig):
    """PEFT's configuration of a bottleneck adapter; loading needs every field.

    Args:
        variant: houlsby, pfeiffer or parallel; for readers only, the computation depends on `form`.
        form: How a module's output is changed: a key of `FORMS`.
        hidden_size: Width of the residual stream.
        bottleneck_size: Width between the two layers.
        activation: A key of `ACTIVATIONS`.
        scaling: Factor of the update.
        init: "near-identity" (normal, sd 0.01, Houlsby et al.) or "zero-up" (He et al.: the update is 0 at first).
    """

    method: ClassVar[str] = "bottleneck"
    variant: str = "pfeiffer"
    form: str = "after"
    hidden_size: int = 0
    bottleneck_size: int = 0
    activation: str = "relu"
    scaling: float = 1.0
    init: str = "near-identity"


class BottleneckLayer(CustomTunerLayer):
    """A module of the base, and each adapter's bottleneck."""

    merge_error = Bottleneck.info.merge_error
    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("form", "activation", "scaling")
    bottleneck_down: nn.ModuleDict
    bottleneck_up: nn.ModuleDict

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__(base_layer, adapter_name)
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()
        self.form: dict[str, str] = {}
        self.activation: dict[str, str] = {}
        self.scaling: dict[str, float] = {}

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add an adapter's bottleneck.

        Raises:
            ValueError: the adapters of this layer have another form.
        """
        if other := {*self.form.values()} - {config.form}:
            raise ValueError(f"adapter '{adapter_name}' has form '{config.form}', the others here have '{other.pop()}'")
        down = nn.Linear(config.hidden_size, config.bottleneck_size)
        up = nn.Linear(config.bottleneck_size, config.hidden_size)
        _initialize(down, up, config.init)
        like = next(self.get_base_layer().parameters())
        self.bottleneck_down[adapter_name] = move_like(like, down)
        self.bottleneck_up[adapter_name] = move_like(like, up)
        self.form[adapter_name] = config.form
        self.activation[adapter_name], self.scaling[adapter_name] = config.activation, config.scaling
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The output of the base's module, changed by the active adapters."""
        if not self.active:
            return cast(Tensor, self.base_layer(x, *args, **kwargs))
        update = partial(self._sum, self.active)
        return FORMS[next(iter(self.form.values()))](self.base_layer, update, x, *args, **kwargs)

    def _sum(self, names: list[str], h: Tensor) -> Tensor:
        return cast(Tensor, sum(self._update(name, h) for name in names))

    def _update(self, name: str, h: Tensor) -> Tensor:
        down, up = cast(nn.Linear, self.bottleneck_down[name]), self.bottleneck_up[name]
        inner = ACTIVATIONS[self.activation[name]](down(self._cast_input_dtype(h, down.weight.dtype)))
        return cast(Tensor, up(inner) * self.scaling[name]).to(h.dtype)


def _initialize(down: nn.Linear, up: nn.Linear, init: str) -> None:
    for layer in (down, up):
        nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
        nn.init.zeros_(layer.bias)
    if init == "zero-up":
        nn.init.kaiming_uniform_(down.weight, a=5**0.5)
        nn.init.zeros_(up.weight)


class BottleneckModel(CustomTunerModel):
    """A base whose target modules are `BottleneckLayer`s."""

    prefix = f"{BottleneckConfig.method}_"
    tuner_layer_cls = BottleneckLayer


register_tuner(BottleneckConfig, BottleneckModel)

"""BitFit (Ben Zaken et al. 2022, arXiv:2106.10199) as a tuner of PEFT: every bias of the base trains, and nothing else.

PEFT's LoRA has `bias="all"`, which trains the base's own biases in place; here each adapter has differences to them, so
that the base stays what it is and serves others beside.

Importing this module makes PEFT know the type BITFIT, so that plain `PeftModel.from_pretrained` loads its adapters.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from peftlab.methods.tuners.custom_tuner import OwnConfig, OwnLayer, OwnModel, register


@dataclass
class BitFitConfig(OwnConfig):
    """All that makes a BitFit adapter: where it goes."""

    method: ClassVar[str] = "bitfit"


class BiasLayer(OwnLayer):
    """A module that adds a bias last, as Linear and LayerNorm do, with a difference to it by adapter name."""

    adapter_layer_names = ("bitfit_delta",)
    bitfit_delta: nn.ParameterDict

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__(base_layer, adapter_name)
        self.bitfit_delta = nn.ParameterDict()
        self.merged_adapters: list[str] = []

    @property
    def bias(self) -> Tensor:
        """(width,) of the base's module."""
        return cast(Tensor, self.get_base_layer().bias)

    def update_layer(self, adapter_name: str, config: BitFitConfig) -> None:
        """Add a difference, which begins as 0."""
        self.bitfit_delta[adapter_name] = nn.Parameter(torch.zeros_like(self.bias, requires_grad=True))
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(…, width) of the base's module, with the differences of the active adapters, or of one adapter a row."""
        if self.disable_adapters:
            self.unmerge()
        y, rows = self.base_layer(x, *args, **kwargs), self.by_row(len(x))
        if rows is None:
            counting = [name for name in self.active if name not in self.merged_adapters]
            deltas = [self.bitfit_delta[name].to(y.dtype) for name in counting]
            return cast(Tensor, sum(deltas, start=y))
        bare = torch.zeros_like(self.bias)
        delta = torch.stack([bare if name is None else self.bitfit_delta[name] for name in rows])
        return cast(Tensor, y + delta.view(len(rows), *[1] * (y.dim() - 2), -1).to(y.dtype))

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the differences of the adapters named, or of the active ones, to the bias."""
        for name in adapter_names or self.active:
            if name in self.here and name not in self.merged_adapters:
                self.bias.data += self.bitfit_delta[name].data
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take them off again."""
        while self.merged_adapters:
            self.bias.data -= self.bitfit_delta[self.merged_adapters.pop()].data


class BitFitModel(OwnModel):
    """A base whose modules with a bias are `BiasLayer`s."""

    prefix = f"{BitFitConfig.method}_"
    tuner_layer_cls = BiasLayer

    def _check_merge_allowed(self) -> None:
        """A bias takes any difference."""


register(BitFitConfig, BitFitModel)

"""BitFit (Ben Zaken et al. 2022, arXiv:2106.10199) as a PEFT tuner: only the biases of the base are trained.

PEFT's LoRA has `bias="all"`, which trains the base's own biases in place. Here each adapter stores its differences from
them, so that the base stays unchanged and other adapters can share it.

Importing this module registers the type BITFIT, so that plain `PeftModel.from_pretrained` loads its adapters.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from peftlab.methods.tuners.custom_tuner import CustomTunerConfig, CustomTunerLayer, CustomTunerModel, register_tuner


@dataclass
class BitFitConfig(CustomTunerConfig):
    """PEFT's configuration of a BitFit adapter: its target modules."""

    method: ClassVar[str] = "bitfit"


class BiasLayer(CustomTunerLayer):
    """A module that finally adds a bias, like Linear and LayerNorm, and each adapter's difference from that bias."""

    adapter_layer_names = ("bitfit_delta",)
    bitfit_delta: nn.ParameterDict

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__(base_layer, adapter_name)
        self.bitfit_delta = nn.ParameterDict()
        self.merged_adapters: list[str] = []

    @property
    def bias(self) -> Tensor:
        """The bias (width,) of the base's module, with merged differences."""
        return cast(Tensor, self.get_base_layer().bias)

    def update_layer(self, adapter_name: str, config: BitFitConfig) -> None:
        """Add an adapter's difference, initialized to 0."""
        self.bitfit_delta[adapter_name] = nn.Parameter(torch.zeros_like(self.bias, requires_grad=True))
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The output (…, width) of the base's module plus the differences of the active adapters."""
        if self.disable_adapters:
            self.unmerge()
        output = self.base_layer(x, *args, **kwargs)
        unmerged = [name for name in self.active if name not in self.merged_adapters]
        deltas = [self.bitfit_delta[name].to(output.dtype) for name in unmerged]
        return cast(Tensor, sum(deltas, start=output))

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the differences of the named adapters, or of the active ones, to the bias."""
        for name in adapter_names or self.active:
            if name in self.adapters and name not in self.merged_adapters:
                self.bias.data += self.bitfit_delta[name].data
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Subtract all merged differences from the bias."""
        while self.merged_adapters:
            self.bias.data -= self.bitfit_delta[self.merged_adapters.pop()].data


class BitFitModel(CustomTunerModel):
    """A base whose target modules are `BiasLayer`s."""

    prefix = f"{BitFitConfig.method}_"
    tuner_layer_cls = BiasLayer

    def _check_merge_allowed(self) -> None:
        """Any difference can be added to a bias."""


register_tuner(BitFitConfig, BitFitModel)

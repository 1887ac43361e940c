"""Prefix tuning as a PEFT tuner: trained keys and values are put before the keys and values of each self-attention.

Li & Liang 2021 (arXiv:2101.00190), with a prefix in every layer as in P-tuning v2 (Liu et al. 2022, arXiv:2110.07602).
PEFT's own PREFIX_TUNING uses the key-value cache, which encoders do not have or count as positions. Here the attention
function adds them (`prefix_attention`), without positions: tokens keep their positions and inputs their full length.

Importing this module registers the type ATTENTION_PREFIX, so that plain `PeftModel.from_pretrained` loads its adapters.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from peft import PrefixEncoder, PrefixTuningConfig
from torch import Tensor, nn

from peftlab.methods.tuners.custom_tuner import (
    CustomTunerConfig,
    CustomTunerLayer,
    CustomTunerModel,
    move_like,
    register_tuner,
)
from peftlab.methods.tuners.prefix_attention import FORMS, PrefixStates
from peftlab.recipe import Prefix

INIT_STD = 0.5  # trained better than 0.02 at each learning rate tried (decision 0017)


@dataclass
class PrefixConfig(CustomTunerConfig):
    """PEFT's configuration of a prefix; loading needs every field.

    Args:
        form: How keys and values get into the attention modules: a key of `FORMS`.
        num_virtual_tokens: Number of trained keys, and of trained values.
        width: Of a key or value: number of key heads times head size.
        prefix_projection: A two-layer network computes them from embeddings, which stabilizes training (Li & Liang,
            §4.3). Each attention module has its own network.
        encoder_hidden_size: Hidden size of that network.
    """

    method: ClassVar[str] = "attention_prefix"
    form: str = "interface"
    num_virtual_tokens: int = 0
    width: int = 0
    prefix_projection: bool = False
    encoder_hidden_size: int = 0


class PrefixLayer(CustomTunerLayer):
    """A self-attention module of the base, and each adapter's prefix."""

    merge_error = Prefix.info.merge_error
    adapter_layer_names = ("attention_prefix_encoder",)
    other_param_names = ("form",)
    attention_prefix_encoder: nn.ModuleDict

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__(base_layer, adapter_name)
        self.attention_prefix_encoder = nn.ModuleDict()
        self.form: dict[str, str] = {}

    def update_layer(self, adapter_name: str, config: PrefixConfig) -> None:
        """Add an adapter's prefix."""
        encoder = PrefixEncoder(
            PrefixTuningConfig(
                num_virtual_tokens=config.num_virtual_tokens,
                num_layers=1,
                token_dim=config.width,
                prefix_projection=config.prefix_projection,
                encoder_hidden_size=config.encoder_hidden_size,
            )
        )
        if not config.prefix_projection:
            nn.init.normal_(encoder.embedding.weight, std=INIT_STD)
        like = next(self.get_base_layer().parameters())
        self.attention_prefix_encoder[adapter_name] = move_like(like, encoder)
        self.form[adapter_name] = config.form
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the base's attention, with the concatenated prefixes of the active adapters."""
        if not self.active:
            return self.base_layer(*args, **kwargs)
        keys, values = torch.cat([self._states(name) for name in self.active])[None].chunk(2, dim=2)
        attend = FORMS[next(iter(self.form.values()))]
        return attend(self.base_layer, PrefixStates(keys, values), *args, **kwargs)

    def _states(self, name: str) -> Tensor:
        """An adapter's keys and values (virtual tokens, 2 × width)."""
        encoder: Any = self.attention_prefix_encoder[name]
        rows = encoder.embedding.weight
        return cast(Tensor, encoder(torch.arange(len(rows), device=rows.device)))


class PrefixModel(CustomTunerModel):
    """A base whose self-attention modules are `PrefixLayer`s."""

    prefix = f"{PrefixConfig.method}_"
    tuner_layer_cls = PrefixLayer


register_tuner(PrefixConfig, PrefixModel)

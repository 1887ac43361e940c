"""Prefix tuning as a tuner of PEFT: trained keys and values in front of every self-attention's own.

Li & Liang 2021 (arXiv:2101.00190), with a prefix in every layer as in P-tuning v2 (Liu et al. 2022, arXiv:2110.07602).
PEFT's own PREFIX_TUNING puts them into the cache of past keys, which encoders do not have or count as positions; here
they enter where attention is computed (`prefix_attention`) and have no position: no token moves, no input gets shorter.

Importing this module makes PEFT know the type ATTENTION_PREFIX, so that plain `PeftModel.from_pretrained` loads them.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from peft import PrefixEncoder, PrefixTuningConfig
from torch import Tensor, nn
from torch.nn import functional

from peftlab.methods.tuners.custom_tuner import OwnConfig, OwnLayer, OwnModel, placed_as, register
from peftlab.methods.tuners.prefix_attention import FORMS, Prefix

INIT_STD = 0.5  # learned better than 0.02 at each rate tried (decision 0017)


@dataclass
class PrefixConfig(OwnConfig):
    """All that makes a prefix; every field is needed to load it again.

    Args:
        form: How keys and values get into the attention modules: a key of `FORMS`.
        num_virtual_tokens: Keys, and values, in front.
        width: Of a key or value: key heads times the size of one.
        prefix_projection: A two-layer network makes them from embeddings, which steadies training (Li & Liang, §4.3).
            Each attention module has one of its own.
        encoder_hidden_size: Width between its layers.
    """

    method: ClassVar[str] = "attention_prefix"
    form: str = "interface"
    num_virtual_tokens: int = 0
    width: int = 0
    prefix_projection: bool = False
    encoder_hidden_size: int = 0


class PrefixLayer(OwnLayer):
    """A self-attention module of a base, with prefixes by adapter name."""

    unmergeable = "no weight of an attention layer could stand for a prefix"
    adapter_layer_names = ("attention_prefix_encoder",)
    other_param_names = ("form",)
    attention_prefix_encoder: nn.ModuleDict

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__(base_layer, adapter_name)
        self.attention_prefix_encoder = nn.ModuleDict()
        self.form: dict[str, str] = {}

    def update_layer(self, adapter_name: str, config: PrefixConfig) -> None:
        """Add a prefix."""
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
        self.attention_prefix_encoder[adapter_name] = placed_as(like, encoder)
        self.form[adapter_name] = config.form
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the base's attention gives, with the prefixes of the active adapters, or of one adapter a row."""
        hidden_states = args[0] if args else kwargs["hidden_states"]
        rows = self.by_row(len(hidden_states))
        prefix = self._of_all(self.active) if rows is None else self._of_each(rows)
        if prefix is None:
            return self.base_layer(*args, **kwargs)
        return FORMS[next(iter(self.form.values()))](self.base_layer, prefix, *args, **kwargs)

    def _of_all(self, names: list[str]) -> Prefix | None:
        """One prefix for all rows: those of `names`, one after the other."""
        if not names:
            return None
        keys, values = torch.cat([self._states(name) for name in names])[None].chunk(2, dim=2)
        return Prefix(keys, values)

    def _of_each(self, rows: list[str | None]) -> Prefix | None:
        """One prefix a row; shorter ones, and the bare base's none, begin with tokens that are not there."""
        made = {name: self._states(name) for name in rows if name}
        if not made:
            return None
        longest, any_one = max(map(len, made.values())), next(iter(made.values()))
        counts = torch.tensor([len(made[name]) if name else 0 for name in rows], device=any_one.device)
        padded = {name: functional.pad(states, (0, 0, longest - len(states), 0)) for name, states in made.items()}
        none = any_one.new_zeros(longest, any_one.shape[1])
        keys, values = torch.stack([padded[name] if name else none for name in rows]).chunk(2, dim=2)
        there = torch.arange(longest, device=counts.device) >= longest - counts[:, None]
        return Prefix(keys, values, there)

    def _states(self, name: str) -> Tensor:
        """Keys and values (virtual tokens, 2 × width) of an adapter."""
        encoder: Any = self.attention_prefix_encoder[name]
        rows = encoder.embedding.weight
        return cast(Tensor, encoder(torch.arange(len(rows), device=rows.device)))


class PrefixModel(OwnModel):
    """A base whose self-attention modules are `PrefixLayer`s."""

    prefix = f"{PrefixConfig.method}_"
    tuner_layer_cls = PrefixLayer


register(PrefixConfig, PrefixModel)

"""Put trained keys and values before those of a base's self-attention, for every attention function.

    softmax([q K_pᵀ, q Kᵀ] / √d) [V_p; V]

There are no hooks and no changed weights: each call goes to a shallow copy of the attention module.
Most architectures pass their queries, keys and values to Transformers' attention interface. There the copy calls a
function of ours, which adds the prefix, extends the mask, and calls the attention function of the base. The key-value
cache therefore never contains the prefix (it is added at each step), and threads share nothing.
"""

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "peftlab_prefix"
MASKED_ATTENTION = {"eager", "sdpa"}
"""Attention functions that apply a mask (batch, heads, queries, keys) and do not use positions."""


@dataclass(frozen=True)
class PrefixStates:
    """Keys and values (1, virtual tokens, width) in front of those of each row."""

    keys: Tensor
    values: Tensor


def attend_by_interface(module: nn.Module, prefix: PrefixStates, *args: Any, **kwargs: Any) -> Any:
    """Call a self-attention module that uses Transformers' attention interface, with a prefix.

    Raises:
        ValueError: its attention function depends on positions, or its keys have another width.
    """

    def attend(clone: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
        if mask is None and _is_causal(clone, query, options):
            mask = _causal_mask(query, key)
        mask = None if mask is None else _extend_mask(mask, prefix)
        if (bias := options.get("position_bias")) is not None:  # T5's bias by distance; 0 for a prefix
            options["position_bias"] = functional.pad(bias, (prefix.keys.shape[1], 0))
        key, value = _prepend_heads(prefix.keys, key), _prepend_heads(prefix.values, value)
        return _attention_function(module)(clone, query, key, value, mask, **options)

    return _clone(module, attend)(*args, **kwargs)


def attend_disentangled(
    module: Any, prefix: PrefixStates, hidden_states: Tensor, attention_mask: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Call DeBERTa-v2's self-attention with a prefix; attention to it is by content, as it has no position."""
    clone, n = copy.copy(module), prefix.keys.shape[1]

    def bias(query: Tensor, key: Tensor, *others: Any) -> Tensor:
        return functional.pad(module.disentangled_attention_bias(query, key[:, n:], *others), (n, 0))

    vars(clone).update(
        key_proj=lambda states: _prepend(prefix.keys, module.key_proj(states), dim=1),
        value_proj=lambda states: _prepend(prefix.values, module.value_proj(states), dim=1),
        disentangled_attention_bias=bias,
    )
    return clone(hidden_states, _extend_mask(attention_mask, prefix), *args, **kwargs)


FORMS: dict[str, Callable[..., Any]] = {"interface": attend_by_interface, "disentangled": attend_disentangled}


def key_widths(model: PreTrainedModel, names: Sequence[str], form: str) -> dict[str, int]:
    """Width of the keys of some self-attention modules: number of key heads times head size.

    Modules for which `form` is impossible are left out: one short forward pass shows which use the attention interface.
    """
    modules: dict[str, Any] = {name: model.get_submodule(name) for name in names}
    if form == "disentangled":
        return {name: m.all_head_size for name, m in modules.items() if hasattr(m, "disentangled_attention_bias")}
    widths: dict[str, int] = {}
    inputs = {name: tensor[:1].to(model.device) for name, tensor in model.dummy_inputs.items()}
    backbone: Any = model.base_model
    with _record_widths({name: m for name, m in modules.items() if hasattr(m, "config")}, widths), torch.no_grad():
        backbone(**inputs)
    return widths


@contextmanager
def _record_widths(modules: dict[str, nn.Module], widths: dict[str, int]) -> Iterator[None]:
    """Inside the block, add to `widths` the width of the keys that each of `modules` computes."""

    def record(name: str, clone: Any, query: Tensor, key: Tensor, *args: Any, **options: Any) -> Any:
        widths[name] = key.shape[1] * key.shape[3]
        return _attention_function(modules[name])(clone, query, key, *args, **options)

    clones = {name: _clone(module, partial(record, name)) for name, module in modules.items()}
    for name, module in modules.items():
        module.forward = clones[name].forward
    try:
        yield
    finally:
        for module in modules.values():
            del module.forward


def _clone(module: Any, attend: Callable[..., Any]) -> nn.Module:
    """A shallow copy on the same weights, which passes its queries, keys and values to `attend`.

    Raises:
        ValueError: the module's forward was replaced, for example by a hook of accelerate, and would be called instead.
    """
    if "forward" in vars(module):
        raise ValueError(f"the forward of {type(module).__name__} has been replaced, so no prefix can be added")
    clone, config = copy.copy(module), copy.copy(module.config)
    config._attn_implementation_internal = NAME
    vars(clone).update(config=config, attend=attend)
    return cast(nn.Module, clone)


def _attention_function(module: Any) -> Callable[..., Any]:
    """The attention function that `module` uses without a prefix.

    Raises:
        ValueError: it depends on positions, and a prefix has none.
    """
    name = module.config._attn_implementation
    if name not in MASKED_ATTENTION:
        raise ValueError(f"prefixes do not work with the attention function '{name}'; take eager or sdpa")
    eager = sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)


def _is_causal(module: Any, query: Tensor, options: dict[str, Any]) -> bool:
    """Whether, without a mask, no token sees a later one; decided as in Transformers' sdpa function."""
    option = options.get("is_causal")
    return query.shape[2] > 1 and bool(getattr(module, "is_causal", True) if option is None else option)


def _causal_mask(query: Tensor, key: Tensor) -> Tensor:
    """The additive causal mask (1, 1, queries, keys); the first query sees the first key."""
    mask = query.new_zeros(query.shape[2], key.shape[2])
    mask.masked_fill_(torch.ones_like(mask, dtype=torch.bool).triu(1), torch.finfo(mask.dtype).min)
    return mask[None, None]


def _extend_mask(mask: Tensor, prefix: PrefixStates) -> Tensor:
    """`mask` (batch or 1, heads or 1, queries, keys) with columns for the virtual tokens, which every query sees."""
    return functional.pad(mask, (prefix.keys.shape[1], 0), value=0.0 if mask.is_floating_point() else 1)


def _prepend_heads(prefix: Tensor, states: Tensor) -> Tensor:
    """`prefix` (1, virtual tokens, width) in front of `states` (batch, heads, tokens, head size).

    Raises:
        ValueError: the width is not that of all heads together.
    """
    heads, size = states.shape[1], states.shape[3]
    if prefix.shape[2] != heads * size:
        raise ValueError(f"a prefix of width {prefix.shape[2]} does not fit {heads} heads of size {size}")
    return _prepend(prefix.unflatten(2, (heads, size)).transpose(1, 2), states, dim=2)


def _prepend(prefix: Tensor, states: Tensor, dim: int) -> Tensor:
    return torch.cat([prefix.to(states.dtype).expand(len(states), *prefix.shape[1:]), states], dim)


def _attend(clone: Any, *args: Any, **options: Any) -> Any:
    """The attention function under `NAME` in Transformers' interface."""
    return clone.attend(clone, *args, **options)


AttentionInterface.register(NAME, _attend)

"""Keys and values put before those of a base's self-attention, whatever computes it.

    softmax([q K_pᵀ, q Kᵀ] / √d) [V_p; V]

No hook and no changed weight: for one call, the attention module is replaced by a *twin*, a shallow copy on the same
weights. Most architectures hand their queries, keys and values to Transformers' attention interface; there the twin
goes through a function of ours, which puts the prefix before them, widens the mask, and calls whatever would have been
called. So keys in a cache have no prefix (it is put before them at each step), and threads share nothing.
"""

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "peftlab_prefix"
MASKED_ATTENTION = {"eager", "sdpa"}
"""Attention functions that see what a mask of (batch, heads, queries, keys) lets them see, and nothing by position."""


@dataclass(frozen=True)
class Prefix:
    """Keys and values (batch or 1, virtual tokens, width) before those of each row.

    `there` (batch, virtual tokens) says which of them a row has; None: all rows have them all.
    """

    keys: Tensor
    values: Tensor
    there: Tensor | None = None


def through_interface(module: nn.Module, prefix: Prefix, *args: Any, **kwargs: Any) -> Any:
    """Call a self-attention module that uses Transformers' attention interface, with a prefix.

    Raises:
        ValueError: it computes by a kernel that goes by positions, or its keys are of another width.
    """

    def attend(twin: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
        causal = _is_causal(twin, query, options)
        if mask is None and (causal or prefix.there is not None):
            mask = _spelled_out(query, key, causal=causal)
        mask = None if mask is None else _widened(mask, prefix)
        if (bias := options.get("position_bias")) is not None:  # T5's, which is by distance: a prefix has none
            options["position_bias"] = functional.pad(bias, (prefix.keys.shape[1], 0))
        key, value = _before(prefix.keys, key), _before(prefix.values, value)
        return _beneath(module)(twin, query, key, value, mask, **options)

    return _twin(module, attend)(*args, **kwargs)


def disentangled(
    module: Any, prefix: Prefix, hidden_states: Tensor, attention_mask: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Call DeBERTa-v2's self-attention with a prefix: by content only, since nothing is at a distance from it."""
    twin, n = copy.copy(module), prefix.keys.shape[1]

    def bias(query: Tensor, key: Tensor, *others: Any) -> Tensor:
        return functional.pad(module.disentangled_attention_bias(query, key[:, n:], *others), (n, 0))

    vars(twin).update(
        key_proj=lambda states: _joined(prefix.keys, module.key_proj(states), dim=1),
        value_proj=lambda states: _joined(prefix.values, module.value_proj(states), dim=1),
        disentangled_attention_bias=bias,
    )
    return twin(hidden_states, _widened(attention_mask, prefix), *args, **kwargs)


FORMS: dict[str, Callable[..., Any]] = {"interface": through_interface, "disentangled": disentangled}


def key_widths(model: PreTrainedModel, names: Sequence[str], form: str) -> dict[str, int]:
    """Width of the keys of some self-attention modules: key heads times the size of one.

    Modules are left out that `form` does not fit: those that do not use the interface, as one short forward pass shows.
    """
    modules: dict[str, Any] = {name: model.get_submodule(name) for name in names}
    if form == "disentangled":
        return {name: m.all_head_size for name, m in modules.items() if hasattr(m, "disentangled_attention_bias")}
    widths: dict[str, int] = {}
    inputs = {name: tensor[:1].to(model.device) for name, tensor in model.dummy_inputs.items()}
    backbone: Any = model.base_model
    with _noting({name: m for name, m in modules.items() if hasattr(m, "config")}, widths), torch.no_grad():
        backbone(**inputs)
    return widths


@contextmanager
def _noting(modules: dict[str, nn.Module], widths: dict[str, int]) -> Iterator[None]:
    """Inside the block, `widths` hears of the keys that each of `modules` computes."""

    def note(name: str, twin: Any, query: Tensor, key: Tensor, *args: Any, **options: Any) -> Any:
        widths[name] = key.shape[1] * key.shape[3]
        return _beneath(modules[name])(twin, query, key, *args, **options)

    twins = {name: _twin(module, partial(note, name)) for name, module in modules.items()}
    for name, module in modules.items():
        module.forward = twins[name].forward
    try:
        yield
    finally:
        for module in modules.values():
            del module.forward


def _twin(module: Any, attend: Callable[..., Any]) -> nn.Module:
    """The same module on the same weights, that hands its queries, keys and values to `attend`."""
    if "forward" in vars(module):  # such as by a hook of accelerate's: it would be the module's own that is called
        raise ValueError(f"the forward of {type(module).__name__} has been replaced, so that no prefix can be put in")
    twin, config = copy.copy(module), copy.copy(module.config)
    config._attn_implementation_internal = NAME
    vars(twin).update(config=config, attend=attend)
    return twin


def _beneath(module: Any) -> Callable[..., Any]:
    """The attention function that `module` would use by itself.

    Raises:
        ValueError: it goes by positions, in which a prefix has no place.
    """
    name = module.config._attn_implementation
    if name not in MASKED_ATTENTION:
        raise ValueError(f"prefixes do not go with the attention function '{name}'; take eager or sdpa")
    eager = sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)


def _is_causal(module: Any, query: Tensor, options: dict[str, Any]) -> bool:
    """Whether, without a mask, no token sees a later one: what Transformers' sdpa function goes by."""
    asked = options.get("is_causal")
    return query.shape[2] > 1 and bool(getattr(module, "is_causal", True) if asked is None else asked)


def _spelled_out(query: Tensor, key: Tensor, *, causal: bool) -> Tensor:
    """The mask (1, 1, queries, keys) that no mask stands for; a causal one begins at the first key."""
    mask = query.new_zeros(query.shape[2], key.shape[2])
    if causal:
        mask.masked_fill_(torch.ones_like(mask, dtype=torch.bool).triu(1), torch.finfo(mask.dtype).min)
    return mask[None, None]


def _widened(mask: Tensor, prefix: Prefix) -> Tensor:
    """`mask` (batch or 1, heads or 1, queries, keys) with columns for the virtual tokens, which every query sees."""
    seen, unseen = (0.0, torch.finfo(mask.dtype).min) if mask.is_floating_point() else (1, 0)
    if prefix.there is None:
        return functional.pad(mask, (prefix.keys.shape[1], 0), value=seen)
    columns = mask.new_full(prefix.there.shape, unseen).masked_fill_(prefix.there, seen)
    columns = columns[:, None, None].expand(-1, *mask.shape[1:3], -1)
    return torch.cat([columns, mask.expand(len(columns), -1, -1, -1)], dim=-1)


def _before(prefix: Tensor, states: Tensor) -> Tensor:
    """`prefix` (batch or 1, virtual tokens, width) before `states` (batch, heads, tokens, size).

    Raises:
        ValueError: the width is another than that of all heads together.
    """
    heads, size = states.shape[1], states.shape[3]
    if prefix.shape[2] != heads * size:
        raise ValueError(f"a prefix of width {prefix.shape[2]} does not go with {heads} heads of {size}")
    return _joined(prefix.unflatten(2, (heads, size)).transpose(1, 2), states, dim=2)


def _joined(prefix: Tensor, states: Tensor, dim: int) -> Tensor:
    return torch.cat([prefix.to(states.dtype).expand(len(states), *prefix.shape[1:]), states], dim)


def _attend(twin: Any, *args: Any, **options: Any) -> Any:
    """What Transformers calls."""
    return twin.attend(twin, *args, **options)


AttentionInterface.register(NAME, _attend)

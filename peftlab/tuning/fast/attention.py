"""Attention for short inputs on a CPU, where the backward pass of torch's fused kernel is slow.

Measured (torch 2.13, two cores with AVX512-BF16, 12 heads of 32, forward and backward): 16 × 16 tokens in bfloat16
10.9 ms with the fused kernel, 1.4 ms here; 32 × 64 tokens 42 and 10 ms; in fp32 3.3 and 1.6 ms, 19 and 14 ms.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from peftlab.methods.tuners.prefix_attention import MASKED_ATTENTION
from peftlab.tuning.fast.dropout import DropoutMasks

NAME = "peftlab_short"
MASKED_ATTENTION.add(NAME)
MAX_LENGTH = {torch.float32: 128, torch.bfloat16: 1024}
"""Longer inputs use torch's kernel, except with dropout, for which torch has only a slow path."""


@contextmanager
def short_sequence_attention(model: PreTrainedModel, masks: DropoutMasks | None) -> Iterator[bool]:
    """Inside the block, a model with sdpa attention uses this function for short inputs; yields whether it does.

    Args:
        model: A Transformers model.
        masks: The source of dropout masks; None draws them with torch.
    """
    if model.config._attn_implementation != "sdpa":
        yield False
        return

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        return _attention(module, query, key, value, mask, masks, **kwargs)

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    model.set_attn_implementation(NAME)
    try:
        yield model.config._attn_implementation == NAME
    finally:
        model.set_attn_implementation("sdpa")


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    masks: DropoutMasks | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """(batch, heads, tokens, size) each → (batch, tokens, heads, size), like Transformers' attention functions."""
    is_long = key.shape[2] > MAX_LENGTH.get(query.dtype, 0) and not dropout
    needs_grad = torch.is_grad_enabled() and any(states.requires_grad for states in (query, key, value))
    if is_long or not needs_grad or not _is_plain(module, mask, kwargs):
        return sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)
    batch, heads, tokens, size = query.shape
    groups = heads // key.shape[1]
    key, value = (repeat_kv(states, groups).reshape(batch * heads, -1, size) for states in (key, value))
    query = (query * (size**-0.5 if scaling is None else scaling)).reshape(batch * heads, tokens, size)
    scores = torch.bmm(query, key.transpose(1, 2))
    if mask is not None:
        scores.view(batch, heads, tokens, -1).add_(mask.clamp(min=torch.finfo(scores.dtype).min))
    weights = torch.softmax(scores, dim=-1)
    if dropout:
        weights = weights * masks.draw(weights, dropout) if masks else torch.dropout(weights, dropout, train=True)
    return torch.bmm(weights, value).view(batch, heads, tokens, size).transpose(1, 2).contiguous(), None


def _is_plain(module: Any, mask: Tensor | None, kwargs: dict[str, Any]) -> bool:
    """Whether attention is a plain softmax over scores, with no restriction but the mask."""
    special = any(kwargs.get(name) is not None for name in ("position_bias", "softcap", "s_aux", "cache"))
    return not special and (mask is not None or not getattr(module, "is_causal", False))

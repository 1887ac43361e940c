"""Attention for short inputs on a CPU, where torch's fused kernel has a slow backward pass.

Measured (torch 2.13, two cores with AVX512-BF16, 12 heads of 32, forward and backward): 16 × 16 tokens in bfloat16
10.9 ms by the fused kernel, 1.4 ms here; 32 × 64 tokens 42 and 10 ms; in fp32 3.3 and 1.6 ms, 19 and 14 ms.
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
LONGEST = {torch.float32: 128, torch.bfloat16: 1024}
"""Longer inputs go to torch's kernel, unless it would have to take its own slow way for dropout's sake."""


@contextmanager
def short_sequence_attention(model: PreTrainedModel, masks: DropoutMasks | None) -> Iterator[bool]:
    """Inside the block, a model that uses torch's kernel (sdpa) uses this for short inputs; gives whether it does.

    Args:
        model: A Transformers model.
        masks: Where dropout's masks come from; None draws them as torch does.
    """
    if model.config._attn_implementation != "sdpa":
        yield False
        return

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        return _attend(module, query, key, value, mask, masks, **kwargs)

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, eager_mask)
    model.set_attn_implementation(NAME)
    try:
        yield model.config._attn_implementation == NAME
    finally:
        model.set_attn_implementation("sdpa")


def _attend(
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
    """(batch, heads, tokens, size) each; → (batch, tokens, heads, size), as Transformers' attention functions do."""
    long = key.shape[2] > LONGEST.get(query.dtype, 0) and not dropout
    learns = torch.is_grad_enabled() and any(states.requires_grad for states in (query, key, value))
    if long or not learns or not _plain(module, mask, kwargs):
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


def _plain(module: Any, mask: Tensor | None, kwargs: dict[str, Any]) -> bool:
    """Nothing is asked for but a softmax over scores, and the mask alone says what may be seen."""
    special = any(kwargs.get(name) is not None for name in ("position_bias", "softcap", "s_aux", "cache"))
    return not special and (mask is not None or not getattr(module, "is_causal", False))

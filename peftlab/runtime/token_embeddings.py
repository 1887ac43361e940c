"""Embeddings of the base with an adapter's own rows for some tokens: PEFT's `trainable_token_indices`, served.

PEFT copies the whole matrix at every pass to put these rows into it; here the base's is looked up, or multiplied, and
the few rows are put over what it gives.
"""

from typing import Any, cast

import torch
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn

from peftlab.runtime.module_clone import clone_modules


class TokenEmbeddings(nn.Module):
    """In the place of `bare`, the base's embeddings or head: tokens of these `numbers` (n,) have `rows` (n, hidden)."""

    def __init__(self, bare: nn.Module, numbers: Tensor, rows: Tensor) -> None:
        super().__init__()
        self.bare = bare
        self.rows = nn.Parameter(rows.detach(), requires_grad=False)
        self.numbers: Tensor
        self.register_buffer("numbers", numbers)

    def __getattr__(self, name: str) -> Any:
        """What is asked of the base's module, such as its weight's dtype."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("bare"), name)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (batch, seq) → (batch, seq, hidden), or states (batch, seq, hidden) → logits (batch, seq, tokens)."""
        given = cast(Tensor, self.bare(x))
        if not isinstance(self.bare, nn.Embedding):
            return given.index_copy(-1, self.numbers, (x @ self.rows.to(x.dtype).t()).to(given.dtype))
        which = x.unsqueeze(-1) == self.numbers
        scale = getattr(self.bare, "embed_scale", 1.0)  # Gemma's
        own = (self.rows.to(given.dtype) * scale).to(given.dtype)[which.int().argmax(-1)]
        return torch.where(which.any(-1, keepdim=True), own, given)


def replace_token_wrappers(model: nn.Module) -> bool:
    """Let `TokenEmbeddings` take the places of PEFT's modules for trained tokens in `model`; whether there are any."""
    wrappers = {name: module for name, module in model.named_modules() if isinstance(module, TrainableTokensWrapper)}
    for name, wrapper in wrappers.items():
        layer = wrapper.token_adapter
        (adapter,) = layer.trainable_tokens_delta
        rows = layer.trainable_tokens_delta[adapter]
        numbers = torch.tensor(layer.token_indices[adapter], device=rows.device)
        _put(model, name, TokenEmbeddings(layer.get_base_layer(), numbers, rows))
    return bool(wrappers)


def has_token_embeddings(model: nn.Module) -> bool:
    """Whether some tokens have rows of their own in `model`."""
    return any(isinstance(module, TokenEmbeddings) for module in model.modules())


def remove_token_embeddings(model: nn.Module) -> nn.Module:
    """The same with the base's modules alone."""
    twin = clone_modules(model)
    for name, module in [*twin.named_modules()]:
        if isinstance(module, TokenEmbeddings):
            _put(twin, name, module.bare)
    return twin


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    model.get_submodule(parent)._modules[last] = module

"""Embeddings of the base in which an adapter has its own vectors for some tokens (PEFT's `trainable_token_indices`).

PEFT copies the whole matrix in every forward pass to insert these vectors. Here the base's matrix is used as it is, and
the few vectors are written over its output.
"""

from typing import cast

import torch
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn

from peftlab.runtime.module_clone import ModuleWrapper, clone_modules


class TokenEmbeddings(ModuleWrapper):
    """The base's embeddings or head, with vectors `weights` (n, hidden) for the tokens `token_ids` (n,)."""

    def __init__(self, base_layer: nn.Module, token_ids: Tensor, weights: Tensor) -> None:
        super().__init__(base_layer)
        self.weights = nn.Parameter(weights.detach(), requires_grad=False)
        self.token_ids: Tensor
        self.register_buffer("token_ids", token_ids)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (batch, seq) → (batch, seq, hidden), or states (batch, seq, hidden) → logits (batch, seq, tokens)."""
        output = cast(Tensor, self.base_layer(x))
        if not isinstance(self.base_layer, nn.Embedding):
            return output.index_copy(-1, self.token_ids, (x @ self.weights.to(x.dtype).t()).to(output.dtype))
        matches = x.unsqueeze(-1) == self.token_ids
        scale = getattr(self.base_layer, "embed_scale", 1.0)  # Gemma scales its embeddings
        vectors = (self.weights.to(output.dtype) * scale).to(output.dtype)[matches.int().argmax(-1)]
        return torch.where(matches.any(-1, keepdim=True), vectors, output)


def replace_token_wrappers(model: nn.Module) -> bool:
    """Replace PEFT's wrappers for trained tokens in `model` by `TokenEmbeddings`; return whether there were any."""
    wrappers = {name: module for name, module in model.named_modules() if isinstance(module, TrainableTokensWrapper)}
    for name, wrapper in wrappers.items():
        layer = wrapper.token_adapter
        (adapter,) = layer.trainable_tokens_delta
        weights = layer.trainable_tokens_delta[adapter]
        token_ids = torch.tensor(layer.token_indices[adapter], device=weights.device)
        _set_module(model, name, TokenEmbeddings(layer.get_base_layer(), token_ids, weights))
    return bool(wrappers)


def has_token_embeddings(model: nn.Module) -> bool:
    """Whether an adapter has its own vectors for some tokens in `model`."""
    return any(isinstance(module, TokenEmbeddings) for module in model.modules())


def remove_token_embeddings(model: nn.Module) -> nn.Module:
    """Copy a model with the base's own embeddings; weights are shared."""
    clone = clone_modules(model)
    for name, module in [*clone.named_modules()]:
        if isinstance(module, TokenEmbeddings):
            _set_module(clone, name, module.base_layer)
    return clone


def _set_module(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent)._modules[name] = module

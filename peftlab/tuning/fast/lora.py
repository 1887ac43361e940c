"""Fused LoRA: one autograd function for the forward and backward pass of all layers that share an input.

PEFT computes `base(x) + B(A(dropout(x))) * scaling` as separate operations, and autograd saves every intermediate
result, in fp32 even if the base is in bfloat16. Here the base's Linear and the update are one function. It adds in
place, saves only `x` and A's r outputs per token, and for query, key and value, which share their input, it multiplies
by all A's at once and accumulates one gradient. A quantized Linear computes its output with its own kernel, and its
weight is dequantized for the gradient, one layer at a time. The results are PEFT's, up to rounding.

The gain: a step takes 0.93 of the time of PEFT's layers and a tenth less memory, on plain and on quantized bases
(benchmarks/results/2026-11-29-fused-lora.md, decision 0011).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

from peftlab.base.quantization import dequantize_weight, is_quantized
from peftlab.tasks.prediction import module_mode
from peftlab.tuning.fast.dropout import dropout_mask

LORA_MODULES = (lora.Linear.__module__, "peft.tuners.lora.bnb")
"""Where PEFT defines the layers of LoRA itself, for plain and for quantized Linears."""
Layers = tuple[lora.LoraLayer, ...]
Masks = Sequence[Any]
"""For each layer a dropout mask (tokens, in), or for all None."""


class SharedInput:
    """Layers that are called with the same tensor: the first call computes all, the others return their output."""

    def __init__(self, layers: Layers) -> None:
        self.layers = layers
        self.input: Tensor | None = None
        self.outputs: dict[lora.LoraLayer, Tensor] = {}

    def forward(self, layer: Any, peft_forward: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(…, in) → (…, out) of `layer`; calls `peft_forward` for everything but plain LoRA training or prediction."""
        if args or kwargs or layer.disable_adapters or layer.merged:
            return peft_forward(x, *args, **kwargs)
        if x is not self.input or layer not in self.outputs:
            layers = self.layers if layer is self.layers[0] else (layer,)
            self.input, self.outputs = x, dict(zip(layers, fused_forward(layers, x), strict=True))
        output = self.outputs.pop(layer)
        if not self.outputs:
            self.input = None
        return output


def fused_forward(layers: Layers, x: Tensor) -> tuple[Tensor, ...]:
    """The output (…, out) of each layer for the same input (…, in), in the dtype of the base."""
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    x = x.to(dtype)
    rows = x.reshape(-1, x.shape[-1])
    named = [(layer, layer.active_adapters[0]) for layer in layers]
    masks = [dropout_mask(layer.lora_dropout[name], rows) for layer, name in named]
    outputs = _FusedLora.apply(
        rows,
        masks,
        [layer.scaling[name] for layer, name in named],
        [layer.get_base_layer() for layer in layers],
        *[layer.lora_A[name].weight for layer, name in named],
        *[layer.lora_B[name].weight for layer, name in named],
    )
    return tuple(output.view(*x.shape[:-1], -1) for output in outputs)


class _FusedLora(torch.autograd.Function):
    """y = x Wᵀ + b + s (x∘m) Aᵀ Bᵀ for n layers; x is (tokens, in), W (out, in), A (r, in), B (out, r)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        masks: Masks,
        scales: Sequence[float],
        bases: Sequence[Any],
        *factors: Tensor,
    ) -> tuple[Tensor, ...]:
        with torch.autocast(x.device.type, enabled=False):
            downs = [factor.to(x.dtype) for factor in factors[: len(bases)]]
            # scaled and stored as (r, out), the fastest layout for three of its four products
            ups = [(b.t() * s).to(x.dtype) for b, s in zip(factors[len(bases) :], scales, strict=True)]
            hidden = _project_down(x, masks, downs)
            outputs = tuple(_base_output(base, x).addmm_(h, up) for base, h, up in zip(bases, hidden, ups, strict=True))
        ctx.save_for_backward(x, *masks, *downs, *ups, *hidden)
        ctx.bases, ctx.scales, ctx.dtypes = bases, scales, [factor.dtype for factor in factors]
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        n = len(gradients)
        x, *saved = ctx.saved_tensors
        masks, downs, ups, hidden = (saved[i * n : (i + 1) * n] for i in range(4))
        with torch.autocast(x.device.type, enabled=False):
            projected = [F.linear(dy, up) for dy, up in zip(gradients, ups, strict=True)]
            a_grad = _down_gradients(x, masks, projected)
            b_grad = [(h.t() @ dy).t() * s for h, dy, s in zip(hidden, gradients, ctx.scales, strict=True)]
            x_grad = None
            if ctx.needs_input_grad[0]:
                x_grad = gradients[0] @ _base_weight(ctx.bases[0], x.dtype)
                for dy, base in zip(gradients[1:], ctx.bases[1:], strict=True):
                    x_grad.addmm_(dy, _base_weight(base, x.dtype))
                _add_update(x_grad, masks, projected, downs)
        factors = [grad.to(dtype) for grad, dtype in zip([*a_grad, *b_grad], ctx.dtypes, strict=True)]
        return (x_grad, None, None, None, *factors)


def _base_output(base: Any, x: Tensor) -> Tensor:
    """(tokens, in) → (tokens, out), a new tensor in the dtype of `x`."""
    if is_quantized(base):
        return base(x)
    return F.linear(x, base.weight.to(x.dtype), None if base.bias is None else base.bias.to(x.dtype))


def _base_weight(base: Any, dtype: torch.dtype) -> Tensor:
    """(out, in)."""
    return (dequantize_weight(base) if is_quantized(base) else base.weight).to(dtype)


def _project_down(x: Tensor, masks: Masks, downs: Sequence[Tensor]) -> Sequence[Tensor]:
    """The output (tokens, r) of each A; without dropout by one product for all."""
    if masks[0] is None:
        return F.linear(x, _concat(downs)).split([len(down) for down in downs], dim=1)
    return [F.linear(x * mask, down) for mask, down in zip(masks, downs, strict=True)]


def _down_gradients(x: Tensor, masks: Masks, projected: Sequence[Tensor]) -> Sequence[Tensor]:
    """The gradient (r, in) of each A."""
    if masks[0] is None:
        return (_concat(projected, dim=1).t() @ x).split([g.shape[1] for g in projected])
    return [g.t() @ (x * mask) for g, mask in zip(projected, masks, strict=True)]


def _add_update(x_grad: Tensor, masks: Masks, projected: Sequence[Tensor], downs: Sequence[Tensor]) -> None:
    """Add the gradient of the updates to the input's gradient (tokens, in)."""
    if masks[0] is None:
        x_grad.addmm_(_concat(projected, dim=1), _concat(downs))
        return
    for g, down, mask in zip(projected, downs, masks, strict=True):
        x_grad.add_((g @ down).mul_(mask))


def _concat(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim)


@contextmanager
def fused_lora(model: PeftModel, batch: Mapping[str, Tensor]) -> Iterator[list[Layers]]:
    """Inside the block, `model` computes its LoRA layers with fused functions; yields the layers, grouped by input.

    PEFT still computes DoRA and other variants, layers of other types (Conv1D) and several adapters. `forward` is
    replaced on the layers, while their parameters stay PEFT's, so that saving and loading do not change.

    Args:
        model: The model to train.
        batch: Any inputs of the model; one forward pass with them shows which layers share an input.
    """
    layers = [module for module in model.modules() if _can_fuse(module)]
    groups = _shared_inputs(model, layers, batch) if layers else []
    for group in groups:
        shared = SharedInput(group)
        for layer in group:
            layer.forward = partial(shared.forward, layer, layer.forward)
    try:
        yield groups
    finally:
        for layer in layers:
            del layer.forward  # the class's own method is used again


def _can_fuse(module: Any) -> bool:
    """Whether `module` is plain LoRA with one adapter on a frozen Linear, quantized or not.

    Layers of other methods, such as AdaLoRA, derive from LoRA's too, and compute otherwise.
    """
    if not isinstance(module, lora.LoraLayer) or type(module).__module__ not in LORA_MODULES:
        return False
    base = module.get_base_layer()
    if not is_quantized(base) and not (type(module) is lora.Linear and type(base) is nn.Linear):
        return False
    names = module.active_adapters
    frozen = not any(parameter.requires_grad for parameter in base.parameters())
    return frozen and len(names) == 1 and names[0] not in module.lora_variant and not module.lora_bias[names[0]]


def _shared_inputs(model: PeftModel, layers: Sequence[Any], batch: Mapping[str, Tensor]) -> list[Layers]:
    """Groups of layers that get the same tensor in one forward pass; each layer is in one group."""
    calls: list[tuple[Tensor, Any]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda module, inputs: calls.append((inputs[0], module))) for layer in layers
    ]
    try:
        with torch.no_grad(), module_mode(model, training=False):
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    by_input: dict[int, list[Any]] = {}
    for x, layer in calls:  # `calls` holds every tensor, so that ids are unique
        by_input.setdefault(id(x), []).append(layer)
    groups = {tuple(dict.fromkeys(group)) for group in by_input.values()}
    counts = {layer: sum(layer in group for group in groups) for layer in layers}
    stable = [group for group in groups if all(counts[layer] == 1 for layer in group)]
    grouped = {layer for group in stable for layer in group}
    return [*stable, *((layer,) for layer in layers if layer not in grouped)]

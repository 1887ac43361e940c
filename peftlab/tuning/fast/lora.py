"""LoRA's forward and backward without waste: one autograd function for all layers that share an input.

PEFT computes `base(x) + B(A(dropout(x))) * scaling` as separate operations, of which autograd keeps every intermediate
result, in fp32 where the base is in bfloat16. Here the base's Linear and the update are one function: it adds in place,
keeps `x` and the r numbers a token that A makes of it, and where query, key and value are computed from the same tensor
it multiplies with their A's at once and adds up one gradient. A quantized Linear computes its output by its own kernel,
and its weight is made whole for the gradient, one layer at a time. The numbers are PEFT's but for rounding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (its name everywhere)

from peftlab.base.quantization import dequantize_weight, is_quantized
from peftlab.tasks.prediction import module_mode
from peftlab.tuning.fast.dropout import dropout_mask

Layers = tuple[lora.LoraLayer, ...]
Masks = Sequence[Any]
"""One dropout mask (tokens, in) a layer, or one None a layer."""


class SharedInput:
    """Layers that are called with the very same tensor: the first call computes them all, the others fetch theirs."""

    def __init__(self, layers: Layers) -> None:
        self.layers = layers
        self.input: Tensor | None = None
        self.waiting: dict[lora.LoraLayer, Tensor] = {}

    def forward(self, layer: Any, pefts: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(…, in) → (…, out) of `layer`; whatever is not plain LoRA training or prediction is left to `pefts`."""
        if args or kwargs or layer.disable_adapters or layer.merged:
            return pefts(x, *args, **kwargs)
        if x is not self.input or layer not in self.waiting:
            layers = self.layers if layer is self.layers[0] else (layer,)
            self.input, self.waiting = x, dict(zip(layers, apply_together(layers, x), strict=True))
        output = self.waiting.pop(layer)
        if not self.waiting:
            self.input = None
        return output


def apply_together(layers: Layers, x: Tensor) -> tuple[Tensor, ...]:
    """The output (…, out) of each layer for the same input (…, in), in the dtype that the base computes in."""
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    x = x.to(dtype)
    rows = x.reshape(-1, x.shape[-1])
    named = [(layer, layer.active_adapters[0]) for layer in layers]
    masks = [dropout_mask(layer.lora_dropout[name], rows) for layer, name in named]
    outputs = _Together.apply(
        rows,
        masks,
        [layer.scaling[name] for layer, name in named],
        [layer.get_base_layer() for layer in layers],
        *[layer.lora_A[name].weight for layer, name in named],
        *[layer.lora_B[name].weight for layer, name in named],
    )
    return tuple(output.view(*x.shape[:-1], -1) for output in outputs)


class _Together(torch.autograd.Function):
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
            # scaled and laid out as (r, out): three of the four products with it are fastest so
            ups = [(b.t() * s).to(x.dtype) for b, s in zip(factors[len(bases) :], scales, strict=True)]
            hidden = _shrink(x, masks, downs)
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
            shrunk = [F.linear(dy, up) for dy, up in zip(gradients, ups, strict=True)]
            downs_grad = _expand_gradients(x, masks, shrunk)
            ups_grad = [(h.t() @ dy).t() * s for h, dy, s in zip(hidden, gradients, ctx.scales, strict=True)]
            x_grad = None
            if ctx.needs_input_grad[0]:
                x_grad = gradients[0] @ _base_weight(ctx.bases[0], x.dtype)
                for dy, base in zip(gradients[1:], ctx.bases[1:], strict=True):
                    x_grad.addmm_(dy, _base_weight(base, x.dtype))
                _add_update(x_grad, masks, shrunk, downs)
        factors = [grad.to(dtype) for grad, dtype in zip([*downs_grad, *ups_grad], ctx.dtypes, strict=True)]
        return (x_grad, None, None, None, *factors)


def _base_output(base: Any, x: Tensor) -> Tensor:
    """(tokens, in) → (tokens, out), a tensor of its own, in the dtype of `x`."""
    if is_quantized(base):
        return base(x)
    return F.linear(x, base.weight.to(x.dtype), None if base.bias is None else base.bias.to(x.dtype))


def _base_weight(base: Any, dtype: torch.dtype) -> Tensor:
    """(out, in)."""
    return (dequantize_weight(base) if is_quantized(base) else base.weight).to(dtype)


def _shrink(x: Tensor, masks: Masks, downs: Sequence[Tensor]) -> Sequence[Tensor]:
    """(tokens, r) of each layer; without dropout by one product for all."""
    if masks[0] is None:
        return F.linear(x, _joined(downs)).split([len(down) for down in downs], dim=1)
    return [F.linear(x * mask, down) for mask, down in zip(masks, downs, strict=True)]


def _expand_gradients(x: Tensor, masks: Masks, shrunk: Sequence[Tensor]) -> Sequence[Tensor]:
    """The gradient (r, in) of each A."""
    if masks[0] is None:
        return (_joined(shrunk, dim=1).t() @ x).split([g.shape[1] for g in shrunk])
    return [g.t() @ (x * mask) for g, mask in zip(shrunk, masks, strict=True)]


def _add_update(x_grad: Tensor, masks: Masks, shrunk: Sequence[Tensor], downs: Sequence[Tensor]) -> None:
    """Add what the updates contribute to the input's gradient (tokens, in)."""
    if masks[0] is None:
        x_grad.addmm_(_joined(shrunk, dim=1), _joined(downs))
        return
    for g, down, mask in zip(shrunk, downs, masks, strict=True):
        x_grad.add_((g @ down).mul_(mask))


def _joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim)


@contextmanager
def fused_lora(model: PeftModel, batch: Mapping[str, Tensor]) -> Iterator[list[Layers]]:
    """Inside the block, `model` computes its LoRA layers by fused functions; gives them in groups by input.

    Left to PEFT are DoRA and other variants, layers of other types (Conv1D) and several adapters.

    Args:
        model: What trains.
        batch: Any inputs of the model; one forward pass with them tells which layers share an input.
    """
    layers = [module for module in model.modules() if _can_fuse(module)]
    groups = _shared_inputs(model, layers, batch) if layers else []
    for group in groups:
        together = SharedInput(group)
        for layer in group:
            layer.forward = partial(together.forward, layer, layer.forward)
    try:
        yield groups
    finally:
        for layer in layers:
            del layer.forward  # the module's own is its class's


def _can_fuse(module: Any) -> bool:
    """Plain LoRA with one adapter on a frozen Linear, whole or quantized."""
    if not isinstance(module, lora.LoraLayer):
        return False
    base = module.get_base_layer()
    if not is_quantized(base) and not (type(module) is lora.Linear and type(base) is nn.Linear):
        return False
    names = module.active_adapters
    frozen = not any(parameter.requires_grad for parameter in base.parameters())
    return frozen and len(names) == 1 and names[0] not in module.lora_variant and not module.lora_bias[names[0]]


def _shared_inputs(model: PeftModel, layers: Sequence[Any], batch: Mapping[str, Tensor]) -> list[Layers]:
    """The layers in groups that are given the very same tensor, as one forward pass shows; each layer is in one."""
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
    for x, layer in calls:  # `calls` keeps every tensor, so that no two have the same id
        by_input.setdefault(id(x), []).append(layer)
    groups = {tuple(dict.fromkeys(group)) for group in by_input.values()}
    counts = {layer: sum(layer in group for group in groups) for layer in layers}
    lasting = [group for group in groups if all(counts[layer] == 1 for layer in group)]
    grouped = {layer for group in lasting for layer in group}
    return [*lasting, *((layer,) for layer in layers if layer not in grouped)]

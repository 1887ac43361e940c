"""The number format that training computes in: bfloat16 where the device is faster at it, with fp32 adapter weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from peftlab.base import FP16_OVERFLOW_MODEL_TYPES
from peftlab.base.quantization import find_4bit_layers
from peftlab.errors import ErrorCollector
from peftlab.recipe import Quantization, TrainingSection

TOO_LARGE_FOR_FP16 = "activations of {kind} leave the range of fp16."
FP16_ON_CUDA_ONLY = "fp16 needs a CUDA device; this run is on {device}."


def training_dtype(
    settings: TrainingSection,
    device: torch.device,
    quantization: Quantization | None = None,
    *,
    model_type: str = "",
) -> torch.dtype:
    """What the recipe asks for, or else the fastest that `device` has instructions for.

    On a CPU that is fp32 for a quantized base: its weights are made whole again for each product, and casting them to
    bfloat16 takes longer than the product saves.

    Raises:
        RecipeError: fp16 on another device than CUDA, or for a model whose numbers leave its range.
    """
    with ErrorCollector() as errors:
        hint = "Take it out: bf16 is chosen by itself where it is faster."
        if settings.fp16 and device.type != "cuda":
            errors.add(FP16_ON_CUDA_ONLY.format(device=device.type), key="training.fp16", hint=hint)
        if settings.fp16 and model_type in FP16_OVERFLOW_MODEL_TYPES:
            errors.add(TOO_LARGE_FOR_FP16.format(kind=model_type), key="training.fp16", hint=hint)
    if settings.fp16:
        return torch.float16
    slow = settings.fp16 is not None or (quantization is not None and device.type == "cpu")
    wanted = settings.bf16 if settings.bf16 is not None else not slow and fast_at_bfloat16(device)
    if wanted:
        return torch.bfloat16
    old_cuda = device.type == "cuda" and settings.bf16 is None and settings.fp16 is None
    return torch.float16 if old_cuda and model_type not in FP16_OVERFLOW_MODEL_TYPES else torch.float32


def fast_at_bfloat16(device: torch.device) -> bool:
    """Whether `device` has instructions for it: AMX or AVX512-BF16 on a CPU, Ampere and later on CUDA."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and any(
        torch.cpu.get_capabilities().get(name, False) for name in ("amx_bf16", "avx512_bf16")
    )


@contextmanager
def frozen_weights_in(model: torch.nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside the block, what does not train is in `dtype`; then the weights are again those of before, bit by bit.

    Of a quantized base only the products are: embeddings and norms stay in fp32. Its biases bitsandbytes casts for
    good to whatever it multiplies, so there as well those of before are put back.
    """
    quantized = any(parameter.dtype in (torch.int8, torch.uint8) for parameter in model.parameters())
    frozen = [p for p in model.parameters() if not p.requires_grad and p.dtype == torch.float32]
    before = [parameter.data for parameter in frozen] if dtype != torch.float32 else []
    for parameter, data in zip(frozen, before, strict=False):
        parameter.data = data if quantized else data.to(dtype)
    before = [data.cpu() for data in before]  # the device's memory is for training
    try:
        with products_in(model, dtype):
            yield
    finally:
        for parameter, data in zip(frozen, before, strict=False):
            parameter.data = data.to(parameter.device)


@contextmanager
def products_in(model: torch.nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside the block, 4-bit layers multiply in `dtype`."""
    layers = find_4bit_layers(model)
    before = [layer.compute_dtype for layer in layers]
    for layer in layers:
        layer.compute_dtype = dtype
    try:
        yield
    finally:
        for layer, earlier in zip(layers, before, strict=True):
            layer.compute_dtype = earlier

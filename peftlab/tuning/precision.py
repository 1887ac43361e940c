"""The dtype of training: bfloat16 if the device is faster with it, while adapter weights stay in fp32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from peftlab.base import FP16_OVERFLOW_MODEL_TYPES
from peftlab.base.quantization import find_4bit_layers
from peftlab.errors import ErrorCollector
from peftlab.recipe import Quantization, TrainingSection

FP16_OVERFLOW = "activations of {model_type} exceed the range of fp16."
FP16_ON_CUDA_ONLY = "fp16 needs a CUDA device; this run is on {device}."


def training_dtype(
    settings: TrainingSection,
    device: torch.device,
    quantization: Quantization | None = None,
    *,
    model_type: str = "",
) -> torch.dtype:
    """The dtype that the recipe sets, or else the fastest one that `device` supports.

    For a quantized base on a CPU that is fp32: its weights are dequantized for each product, and casting them to
    bfloat16 takes longer than the product saves.

    Raises:
        RecipeError: fp16 on a device other than CUDA, or for a model whose activations exceed its range.
    """
    with ErrorCollector() as errors:
        hint = "Remove it: bf16 is used automatically if it is faster."
        if settings.fp16 and device.type != "cuda":
            errors.add(FP16_ON_CUDA_ONLY.format(device=device.type), key="training.fp16", hint=hint)
        if settings.fp16 and model_type in FP16_OVERFLOW_MODEL_TYPES:
            errors.add(FP16_OVERFLOW.format(model_type=model_type), key="training.fp16", hint=hint)
    if settings.fp16:
        return torch.float16
    use_fp32 = settings.fp16 is not None or (quantization is not None and device.type == "cpu")
    use_bf16 = settings.bf16 if settings.bf16 is not None else not use_fp32 and supports_bfloat16(device)
    if use_bf16:
        return torch.bfloat16
    old_cuda = device.type == "cuda" and settings.bf16 is None and settings.fp16 is None
    return torch.float16 if old_cuda and model_type not in FP16_OVERFLOW_MODEL_TYPES else torch.float32


def supports_bfloat16(device: torch.device) -> bool:
    """Whether `device` has bfloat16 instructions: AMX or AVX512-BF16 on a CPU, Ampere or later on CUDA."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and any(
        torch.cpu.get_capabilities().get(name, False) for name in ("amx_bf16", "avx512_bf16")
    )


@contextmanager
def frozen_weights_in(model: torch.nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside the block, frozen weights are in `dtype`; afterwards the original weights are restored bit by bit.

    Autocast alone would cast every weight in every step (decision 0011). In a quantized base only the products are in
    `dtype`: embeddings and norms stay in fp32. bitsandbytes casts biases permanently, so they are restored as well.
    """
    quantized = any(parameter.dtype in (torch.int8, torch.uint8) for parameter in model.parameters())
    frozen = [p for p in model.parameters() if not p.requires_grad and p.dtype == torch.float32]
    original = [parameter.data for parameter in frozen] if dtype != torch.float32 else []
    for parameter, data in zip(frozen, original, strict=False):
        parameter.data = data if quantized else data.to(dtype)
    original = [data.cpu() for data in original]  # saves the device's memory for training
    try:
        with compute_dtype_4bit(model, dtype):
            yield
    finally:
        for parameter, data in zip(frozen, original, strict=False):
            parameter.data = data.to(parameter.device)


@contextmanager
def compute_dtype_4bit(model: torch.nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside the block, 4-bit layers multiply in `dtype`."""
    layers = find_4bit_layers(model)
    original = [layer.compute_dtype for layer in layers]
    for layer in layers:
        layer.compute_dtype = dtype
    try:
        yield
    finally:
        for layer, layer_dtype in zip(layers, original, strict=True):
            layer.compute_dtype = layer_dtype

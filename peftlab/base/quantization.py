"""Load a base in 8 or 4 bits with bitsandbytes.

8bit is LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339), 4bit is NF4 with double quantization (Dettmers et al. 2023,
arXiv:2305.14314). Only Linear layers are quantized, including GPT-2's Conv1D. Embeddings, norms and biases stay in
fp32.
"""

import logging
import re
from collections.abc import Collection, Iterable
from typing import Any

from peftlab.errors import DeviceNotFoundError
from peftlab.imports import peft, torch, transformers
from peftlab.recipe import Quantization

DEVICES = ("cuda", "cpu")


def quantization_kwargs(
    quantization: Quantization, skip_modules: Iterable[str], device: "torch.device"
) -> dict[str, Any]:
    """Arguments of `from_pretrained` that quantize every Linear layer except `skip_modules` (full module names).

    Raises:
        DeviceNotFoundError: bitsandbytes does not compute on `device`.
    """
    check_device(quantization, device)
    silence_bitsandbytes()
    # Transformers reads these as regular expressions, and a plain name also as the end of other names
    skipped = [f"^{re.escape(name)}$" for name in skip_modules]
    options = (
        {"load_in_8bit": True}
        if quantization == "8bit"
        else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    )
    config = transformers.BitsAndBytesConfig(**options, llm_int8_skip_modules=skipped)
    return {"quantization_config": config, "device_map": {"": _with_device_index(device)}}


def _with_device_index(device: "torch.device") -> "torch.device":
    """The GPU of this process: some libraries read a device map to plain `cuda` as the first GPU."""
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device


def check_device(quantization: Quantization, device: "torch.device") -> None:
    """Check that bitsandbytes computes on this kind of device.

    Raises:
        DeviceNotFoundError: the device is neither CUDA nor a CPU.
    """
    if device.type not in DEVICES:
        raise DeviceNotFoundError(
            f"A base in {quantization} runs on cuda or cpu, not on {device.type}. Use --device cpu."
        )


def silence_bitsandbytes() -> None:
    """Hide bitsandbytes' warnings: it repeats one for each cast input, and one for a CPU kernel that is not used."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def disable_avx512_packing(model: "torch.nn.Module") -> None:
    """Keep the 4-bit weights of `model` in their usual layout on CPUs with AVX512-BF16.

    On such CPUs bitsandbytes repacks each weight in the first forward pass for a faster bfloat16 product. After that,
    gradients are wrong (with biases: an error), merging and saving damage the weights, and only some sizes work.
    """
    for layer in find_4bit_layers(model):
        layer.support_avx512bf16_for_cpu = False


def find_4bit_layers(model: "torch.nn.Module") -> list[Any]:
    """bitsandbytes' 4-bit layers, found by an attribute that only they have, since importing bitsandbytes is slow."""
    return [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]


def is_quantized(layer: "torch.nn.Module") -> bool:
    """Whether `layer` is a Linear layer in 8 or 4 bits."""
    return str(getattr(getattr(layer, "weight", None), "dtype", "")) in ("torch.int8", "torch.uint8")


def dequantize_weight(layer: Any) -> "torch.Tensor":
    """The weight of a quantized Linear layer, shape (out_features, in_features), in the dtype it was quantized from."""
    return peft.utils.integrations.dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None))


def num_weights(parameter: "torch.Tensor") -> int:
    """The number of weights that a parameter holds: a 4-bit one holds two in each byte."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else state.shape.numel())


def memory_footprint(model: "torch.nn.Module", exclude: Collection[str] = ()) -> int:
    """Bytes that the weights of `model` take, with the statistics of quantized ones, but without those in `exclude`."""
    tensors = [tensor for name, tensor in model.state_dict().items() if name not in exclude]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())  # tied weights count once

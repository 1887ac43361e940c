"""A base in 8 or 4 bits, by bitsandbytes: how it is loaded, what stays whole, and what would go wrong by itself.

8bit is LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339), 4bit is NF4 with double quantization (Dettmers et al. 2023,
arXiv:2305.14314). Only Linear layers are quantized, GPT-2's Conv1D among them; embeddings, norms and biases stay fp32.
"""

import logging
import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from peftlab.errors import DeviceNotFoundError
from peftlab.recipe import Quantization

if TYPE_CHECKING:
    import torch

DEVICES = ("cuda", "cpu")


def quantized_loading(quantization: Quantization, whole: Iterable[str], device: "torch.device") -> dict[str, Any]:
    """What `from_pretrained` is told so that every Linear but those named in `whole` is quantized; names are full ones.

    Raises:
        DeviceNotFoundError: bitsandbytes does not compute on `device`.
    """
    check_device(quantization, device)
    quiet_bitsandbytes()
    from transformers import BitsAndBytesConfig

    # Transformers takes these for regular expressions, and bare names for ends of names as well
    skipped = [f"^{re.escape(name)}$" for name in whole]
    options = (
        {"load_in_8bit": True}
        if quantization == "8bit"
        else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    )
    config = BitsAndBytesConfig(**options, llm_int8_skip_modules=skipped)
    return {"quantization_config": config, "device_map": {"": _numbered(device)}}


def _numbered(device: "torch.device") -> "torch.device":
    """The very GPU of this process: a map to `cuda` means the first for some of those who read it."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device


def check_device(quantization: Quantization, device: "torch.device") -> None:
    """Refuse what bitsandbytes cannot compute on.

    Raises:
        DeviceNotFoundError: neither CUDA nor a CPU.
    """
    if device.type not in DEVICES:
        raise DeviceNotFoundError(
            f"a base in {quantization} computes on cuda or cpu, not on {device.type}: --device cpu"
        )


def quiet_bitsandbytes() -> None:
    """It warns of every input that 8-bit layers cast, and of a kernel that it misses on some CPUs and we never use."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def keep_unpacked(model: "torch.nn.Module") -> None:
    """Have the 4-bit weights of `model` stay as they are on CPUs with AVX512-BF16.

    There the first prediction packs each weight anew for a faster product, in bfloat16. From then on gradients are
    wrong (biases: an error), merging and saving spoil the weights, and only some sizes can be packed at all.
    """
    for layer in layers_in_4bit(model):
        layer.support_avx512bf16_for_cpu = False


def layers_in_4bit(model: "torch.nn.Module") -> list[Any]:
    """bitsandbytes' 4-bit layers, by an attribute that only they have: it is slow to import."""
    return [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]


def is_quantized(layer: "torch.nn.Module") -> bool:
    """Whether `layer` is a Linear in 8 or 4 bits."""
    return str(getattr(getattr(layer, "weight", None), "dtype", "")) in ("torch.int8", "torch.uint8")


def whole_weight(layer: Any) -> "torch.Tensor":
    """What the weight of a quantized Linear stands for: (out, in), in the dtype that it was quantized from."""
    from peft.utils.integrations import dequantize_bnb_weight

    return dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None))


def weights_in(parameter: "torch.Tensor") -> int:
    """How many weights a parameter stands for: two in each byte of a 4-bit one."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else state.shape.numel())


def bytes_of(model: "torch.nn.Module", without: Collection[str] = ()) -> int:
    """Memory of the weights of `model`, with the statistics of quantized ones; not of those named in `without`."""
    held = [tensor for name, tensor in model.state_dict().items() if name not in without]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in held}.values())  # tied weights are there once

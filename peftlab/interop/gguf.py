"""A LoRA of a language model as one GGUF file, which llama.cpp takes with `--lora`.

The rules are llama.cpp's own (src/llama-adapter.cpp reads such a file, convert_lora_to_gguf.py writes one, conversion/
says what becomes of each architecture's weights); decision 0025 cites them. For each adapted weight W (out, in) there
are `lora_a` (r, in) and `lora_b` (out, r), and W x + alpha / r · B A x is computed, with one `alpha` for all.
"""

import importlib.util
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import transformers
from peft.utils.other import get_pattern_key
from torch import Tensor

from peftlab.errors import PackageNotFoundError
from peftlab.runtime.adapter_files import AdapterFiles
from peftlab.store import PEFT_PREFIX

ARCHITECTURES = {
    "gemma": "GEMMA",
    "gemma2": "GEMMA2",
    "gemma3_text": "GEMMA3",
    "gpt2": "GPT2",
    "llama": "LLAMA",
    "mistral": "LLAMA",
    "qwen2": "QWEN2",
    "qwen3": "QWEN3",
}
"""Transformers' `model_type` → llama.cpp's name: those whose weights it takes as they are, but for `INTERLEAVED`."""
INTERLEAVED = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
"""Of the architecture LLAMA: outputs whose rows llama.cpp has in another order → how many heads they have."""
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


def check_gguf() -> None:
    """Raises PackageNotFoundError where the package that writes GGUF is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise PackageNotFoundError("GGUF files are written by the package gguf: pip install 'peftlab[gguf]'.")


def refused_by_llama_cpp(read: AdapterFiles, base: transformers.PretrainedConfig) -> Iterator[str]:
    """Why a plain LoRA for `base` cannot be said in llama.cpp's file."""
    if base.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        yield f"its base is of the architecture {base.model_type}; peftlab knows how llama.cpp has {known}."
        return
    names = _names(base)
    for module in sorted({_module(name) for name in read.tensors}):
        if (name := names.get_name(module)) is None or not name.startswith("blk."):
            yield f"it changes {module}, and llama.cpp adapts Linear layers of {base.model_type}'s blocks alone."


def write_gguf(read: AdapterFiles, base: transformers.PretrainedConfig, file: Path) -> None:
    """Write the adapter's LoRA for `base`, in fp32.

    Where layers have scales of their own, what differs from the first's goes into B.
    """
    import gguf

    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[_architecture(base)])
    modules, names = sorted({_module(name) for name in read.tensors}), _names(base)
    alphas = {module: _alpha(read, module) for module in modules}
    alpha = alphas[modules[0]] or 1.0  # llama.cpp takes 0 for no scale at all
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(str(read.adapter))
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, read.adapter.manifest.base.model)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for module in modules:
        down, up = (read.tensors[f"{PEFT_PREFIX}{module}{part}"] for part in (DOWN, UP))
        up = _in_their_order(up, module, base) * (alphas[module] / alpha)
        name = f"{names.get_name(module)}.weight"
        writer.add_tensor(f"{name}.lora_a", down.contiguous().numpy())
        writer.add_tensor(f"{name}.lora_b", up.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _module(tensor: str) -> str:
    """`base_model.model.….q_proj.lora_A.weight` → `….q_proj`."""
    return tensor.removeprefix(PEFT_PREFIX).removesuffix(DOWN).removesuffix(UP)


def _architecture(base: transformers.PretrainedConfig) -> Any:
    import gguf

    return gguf.MODEL_ARCH[ARCHITECTURES[base.model_type]]


def _names(base: transformers.PretrainedConfig) -> Any:
    import gguf

    return gguf.get_tensor_name_map(_architecture(base), base.num_hidden_layers)


def _alpha(read: AdapterFiles, module: str) -> float:
    """What a layer's B A is scaled by, times its rank: PEFT's lora_alpha, but for rank-stabilized LoRA."""
    config, rank = read.config, len(read.tensors[f"{PEFT_PREFIX}{module}{DOWN}"])
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(list(patterns), module), config["lora_alpha"])
    return float(alpha * math.sqrt(rank) if config.get("use_rslora") else alpha)


def _in_their_order(up: Tensor, module: str, base: transformers.PretrainedConfig) -> Tensor:
    """B (out, r) with its rows as llama.cpp has those of W.

    Llama's rotary embedding turns pairs of numbers in each head: with Transformers the first half's with the second's,
    with llama.cpp neighbours (`LlamaModel.permute` in its conversion/llama.py).
    """
    heads = INTERLEAVED.get(module.rpartition(".")[2])
    if heads is None or ARCHITECTURES[base.model_type] != "LLAMA":
        return up
    return up.unflatten(0, (getattr(base, heads), 2, -1)).transpose(1, 2).reshape(up.shape)

"""Write a LoRA of a language model as one GGUF file, which llama.cpp loads with `--lora`.

The rules are those of llama.cpp: src/llama-adapter.cpp reads such a file, convert_lora_to_gguf.py writes one, and
conversion/ says how the weights of each architecture are converted; decision 0025 cites them. The file has `lora_a`
(r, in) and `lora_b` (out, r) for each adapted weight W (out, in), and llama.cpp computes W x + alpha / r · B A x, with
one `alpha` for all weights.
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
from peftlab.imports import gguf
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
"""Transformers' `model_type` → llama.cpp's name; only for architectures with unchanged weights, except `PERMUTED`."""
PERMUTED = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
"""Weights of the architecture LLAMA whose rows llama.cpp permutes → the key of their number of heads."""
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"


def check_gguf_installed() -> None:
    """Raise PackageNotFoundError if the package that writes GGUF is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise PackageNotFoundError("GGUF files are written by the package gguf: pip install 'peftlab[gguf]'.")


def unsupported_by_llama_cpp(files: AdapterFiles, base: transformers.PretrainedConfig) -> Iterator[str]:
    """Yield each reason why llama.cpp cannot load a plain LoRA of this base."""
    if base.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        yield f"its base has the architecture {base.model_type}; peftlab writes GGUF files for {known}."
        return
    names = _tensor_names(base)
    for module in _adapted_modules(files):
        if (name := names.get_name(module)) is None or not name.startswith("blk."):
            yield f"it changes {module}, and llama.cpp adapts only Linear layers in the blocks of {base.model_type}."


def write_gguf(files: AdapterFiles, base: transformers.PretrainedConfig, path: Path) -> None:
    """Write an adapter's LoRA in fp32.

    If layers have different scales, B is multiplied by each layer's ratio to the first layer's scale.
    """
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[_architecture(base)])
    modules, names = _adapted_modules(files), _tensor_names(base)
    alphas = {module: _alpha(files, module) for module in modules}
    alpha = alphas[modules[0]] or 1.0  # llama.cpp does not scale if alpha is 0
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(str(files.adapter))
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, files.adapter.manifest.base.model)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for module in modules:
        lora_a, lora_b = (files.tensors[f"{PEFT_PREFIX}{module}{suffix}"] for suffix in (LORA_A, LORA_B))
        lora_b = _permute_rows(lora_b, module, base) * (alphas[module] / alpha)
        name = f"{names.get_name(module)}.weight"
        writer.add_tensor(f"{name}.lora_a", lora_a.contiguous().numpy())
        writer.add_tensor(f"{name}.lora_b", lora_b.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _adapted_modules(files: AdapterFiles) -> list[str]:
    """Names of adapted modules: `base_model.model.….q_proj.lora_A.weight` → `….q_proj`."""
    names = (name.removeprefix(PEFT_PREFIX).removesuffix(LORA_A).removesuffix(LORA_B) for name in files.tensors)
    return sorted(set(names))


def _architecture(base: transformers.PretrainedConfig) -> Any:
    return gguf.MODEL_ARCH[ARCHITECTURES[base.model_type]]


def _tensor_names(base: transformers.PretrainedConfig) -> Any:
    return gguf.get_tensor_name_map(_architecture(base), base.num_hidden_layers)


def _alpha(files: AdapterFiles, module: str) -> float:
    """The scale of a layer's B A times its rank: `lora_alpha`, or its equivalent for rank-stabilized LoRA."""
    config, rank = files.config, len(files.tensors[f"{PEFT_PREFIX}{module}{LORA_A}"])
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(list(patterns), module), config["lora_alpha"])
    return float(alpha * math.sqrt(rank) if config.get("use_rslora") else alpha)


def _permute_rows(lora_b: Tensor, module: str, base: transformers.PretrainedConfig) -> Tensor:
    """Permute the rows of B (out, r) as llama.cpp permutes those of W.

    Llama's rotary embedding rotates pairs of elements in each head. Transformers pairs the first half with the second
    half, llama.cpp pairs neighbours (`LlamaModel.permute` in its conversion/llama.py).
    """
    num_heads = PERMUTED.get(module.rpartition(".")[2])
    if num_heads is None or ARCHITECTURES[base.model_type] != "LLAMA":
        return lora_b
    return lora_b.unflatten(0, (getattr(base, num_heads), 2, -1)).transpose(1, 2).reshape(lora_b.shape)

"""The options of a bank: device, dtype and memory of its base and its adapters."""

from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

import torch

from peftlab.errors import suggest
from peftlab.recipe import Quantization

Precision = Literal["auto", "fp32", "bf16", "fp16"]
QUANTIZATIONS = ("none", *get_args(Quantization))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class BankOptions(TypedDict, total=False):
    """The keyword arguments of `Bank`, `load`, `evaluate` and `evaluate_mixed`; see `BankSettings`."""

    device: str
    quantization: Literal["none"] | Quantization | None
    precision: Precision
    memory: int | None
    slots: int | None
    trust_remote_code: bool


@dataclass(frozen=True, kw_only=True)
class BankSettings:
    """Checked options with their defaults.

    Args:
        device: auto, cpu, cuda or mps.
        quantization: Quantization of the base in memory; None means that of the first adapter.
        precision: Dtype of an unquantized base; auto means bf16 on a CPU with AMX, else fp32. Heads compute in fp32.
        memory: Host memory in bytes that tensors of adapters may take; None for no limit. The least recently used ones
            are read again when they are needed.
        slots: How many adapters may be ready at a time, on the device; None for no limit.
        trust_remote_code: Run Python code that comes with the base, if the adapter was tuned with it.

    Raises:
        ValueError: unknown quantization or precision, or less than one slot.
    """

    device: str = "auto"
    quantization: Literal["none"] | Quantization | None = None
    precision: Precision = "auto"
    memory: int | None = None
    slots: int | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise ValueError(f"no quantization '{self.quantization}'. {suggest(self.quantization, QUANTIZATIONS)}")
        if self.precision not in ("auto", *DTYPES):
            raise ValueError(f"no precision '{self.precision}'. {suggest(self.precision, ('auto', *DTYPES))}")
        if self.slots is not None and self.slots < 1:
            raise ValueError(f"slots must be at least 1, not {self.slots}")


def resolve_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of a precision; auto is bf16 on a CPU with AMX, which multiplies it several times faster, else fp32."""
    if precision != "auto":
        return DTYPES[precision]
    has_amx = device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16", False)
    return torch.bfloat16 if has_amx else torch.float32

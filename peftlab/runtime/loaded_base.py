"""The base in memory: whether an adapter belongs on it, and what models adapters make of it."""

import copy
from typing import Any, Literal

import torch
from peft import PeftModel

from peftlab.base import FP16_OVERFLOW_MODEL_TYPES, BaseFiles, find_base, load_backbone
from peftlab.errors import BaseNotFoundError, IntegrityError
from peftlab.methods import method_info
from peftlab.recipe import BaseSection, Quantization
from peftlab.runtime.adapter_files import AdapterFiles
from peftlab.runtime.adapter_loading import Attached, attach
from peftlab.runtime.routing import Router
from peftlab.store import Adapter
from peftlab.tasks import Task
from peftlab.tasks.inputs.inputs import Inputs

FP32 = "fp32"
PROBE_SHAPE = (3, 5)  # rows and positions of the batch that shows which modules compute by row


Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class LoadedBase:
    """The base that an adapter was tuned on, with its inputs, ready for rows of any adapters.

    Args:
        first: The adapter that brings it.
        device: auto, cpu, cuda or mps.
        quantization: Hold it so; None as `first` was tuned on.
        precision: What it computes in; see `load`.
        trust_remote_code: Run Python code that comes with it.

    Raises:
        BaseNotFoundError: it is nowhere.
        DeviceNotFoundError: there is no such device, or it cannot compute with a quantized base.
        IntegrityError: it needs code that is not trusted, or its numbers leave the range of fp16.
    """

    def __init__(
        self,
        first: Adapter,
        *,
        device: str,
        quantization: Literal["none"] | Quantization | None,
        precision: Precision = "auto",
        trust_remote_code: bool,
    ) -> None:
        base = first.manifest.base
        if base.trust_remote_code and not trust_remote_code:  # what a stranger's manifest says is not consent
            raise IntegrityError(
                f"{first} was tuned with Python code that comes with '{base.model}'. If you have read that "
                "code, allow it: --trust-remote-code, or load(…, trust_remote_code=True)."
            )
        self.device = device
        self.trust_remote_code = trust_remote_code
        self.asked_quantization = quantization
        self.quantization: Quantization | None = (
            tuned_on(first) if quantization is None else None if quantization == "none" else quantization
        )
        self.files = find_tuned_base(first, trust_remote_code=trust_remote_code)
        self.fingerprint = self.files.fingerprint
        self.inputs = first.task.inputs_class.load(self.files, trust_remote_code=trust_remote_code)
        self.inputs_fingerprint = self.inputs.fingerprint
        self.backbone = self._load_backbone()
        if precision == "fp16" and (kind := self.backbone.config.model_type) in FP16_OVERFLOW_MODEL_TYPES:
            raise IntegrityError(f"activations of '{base.model}' ({kind}) leave the range of fp16: take bf16 or fp32.")
        if self.quantization is None:
            self.backbone.to(dtype_of(precision, self.backbone.device))
        self._inputs: dict[type[Inputs], Inputs] = {type(self.inputs): self.inputs}
        self.router = Router(self.backbone, self.inputs.probe(self.backbone, *PROBE_SHAPE))

    def inputs_for(self, task: Task) -> Inputs:
        """The inputs of a task, with the processor of another task's inputs if both prepare it in the same way."""
        wanted = task.inputs_class
        if wanted not in self._inputs:
            shared = (wanted.from_loaded(loaded) for loaded in self._inputs.values())
            found = next((inputs for inputs in shared if inputs is not None), None)
            self._inputs[wanted] = found or wanted.load(self.files, trust_remote_code=self.trust_remote_code)
        return self._inputs[wanted]

    def check(self, read: AdapterFiles) -> None:
        """Refuse an adapter of another base.

        Raises:
            IntegrityError: its weights, tokenizer or quantization are others, or its method does not go with it.
        """
        adapter, base = read.adapter, read.adapter.manifest.base
        for what, expected, found in (
            ("weights", base.fingerprint, self.fingerprint),
            ("tokenizer", base.tokenizer_sha256, self.inputs_fingerprint),
        ):
            if expected != found:
                raise IntegrityError(
                    f"{adapter} was tuned on '{base.model}' with {what} {expected[:12]}…, but the base in memory, "
                    f"'{self.files.model}' from {self.files.source}, has {found[:12]}…. One bank holds one base."
                )
        if self.asked_quantization is None and tuned_on(read.adapter) != self.quantization:
            expected, found = tuned_on(read.adapter) or FP32, self.quantization or FP32
            raise IntegrityError(
                f"{adapter} was tuned on its base in {expected}, but the base in memory is in {found}. One bank holds "
                "one base: load them apart, or say which all are to share, by --quantization none, 8bit or 4bit, or "
                "load(…, quantization=…)."
            )
        method = adapter.manifest.method
        conflict = method_info(method).quantization_conflict(method, read.config, self.quantization, serving=True)
        if conflict:
            raise IntegrityError(f"{adapter} cannot be put beside this base: {conflict[1]}")

    def note_on(self, read: AdapterFiles) -> str | None:
        """What to know about an adapter that was tuned on the base in another quantization."""
        if tuned_on(read.adapter) == self.quantization:
            return None
        return (
            f"{read.adapter} was tuned on its base in {tuned_on(read.adapter) or FP32} and runs on it in "
            f"{self.quantization or FP32}: the scores in its manifest do not hold here."
        )

    def attach(self, read: AdapterFiles) -> Attached:
        """The adapter's model on these weights.

        Raises:
            IntegrityError: it does not fit.
        """
        return attach(read, self.backbone, self.files, trust_remote_code=self.trust_remote_code)

    def full_precision_copy(self, read: AdapterFiles) -> PeftModel:
        """The same on a base of its own in fp32: a quantized one's with the weights that it is rounded to."""
        if self.quantization is None:
            return copy.deepcopy(self.attach(read).adapted)
        rounded = self._load_backbone().dequantize(torch.float32)
        return attach(read, rounded, self.files, trust_remote_code=self.trust_remote_code).adapted

    def _load_backbone(self) -> Any:
        place: dict[str, Any] = {"quantization": self.quantization, "device": self.device}
        return load_backbone(self.files, trust_remote_code=self.trust_remote_code, **place)


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """auto is bfloat16 on a CPU with AMX, which multiplies it several times as fast, and fp32 elsewhere."""
    if precision != "auto":
        return DTYPES[precision]
    amx = device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16", False)
    return torch.bfloat16 if amx else torch.float32


def tuned_on(adapter: Adapter) -> Quantization | None:
    """The quantization of the base that the adapter was tuned on."""
    return adapter.manifest.base.quantization


def find_tuned_base(adapter: Adapter, *, trust_remote_code: bool = False) -> BaseFiles:
    """The base at the commit it had when tuning, or else anywhere: its fingerprint is yet to be compared."""
    base = adapter.manifest.base
    section = BaseSection(model=base.model, revision=base.revision, trust_remote_code=trust_remote_code)
    try:
        return find_base(section)
    except BaseNotFoundError:
        if not section.revision:
            raise
        return find_base(section.model_copy(update={"revision": None}))

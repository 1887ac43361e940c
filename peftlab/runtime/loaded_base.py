"""The base in memory: checks that adapters were tuned on it, and attaches them."""

import copy
from typing import Any

import torch
from peft import PeftModel

from peftlab.base import FP16_OVERFLOW_MODEL_TYPES, BaseFiles, find_base, load_backbone
from peftlab.errors import BaseNotFoundError, IntegrityError
from peftlab.methods import method_info
from peftlab.recipe import BaseSection, Quantization
from peftlab.runtime.adapter_files import AdapterFiles
from peftlab.runtime.adapter_loading import AttachedAdapter, attach_adapter
from peftlab.runtime.options import BankSettings, resolve_dtype
from peftlab.runtime.routing import Router
from peftlab.store import Adapter
from peftlab.tasks import Task
from peftlab.tasks.inputs.inputs import Inputs

FP32 = "fp32"
PROBE_SHAPE = (3, 5)  # rows × positions of the batch that shows which modules compute row by row


class LoadedBase:
    """The base that an adapter was tuned on, with its inputs, for rows of any adapters.

    Args:
        first: The adapter whose base is loaded.
        settings: Device, quantization, precision and trust; see `BankSettings`.

    Raises:
        BaseNotFoundError: the base is not found.
        DeviceNotFoundError: there is no such device, or it cannot compute with a quantized base.
        IntegrityError: the base needs code that is not trusted, or its activations exceed the range of fp16.
    """

    def __init__(self, first: Adapter, settings: BankSettings) -> None:
        base = first.manifest.base
        if base.trust_remote_code and not settings.trust_remote_code:  # a manifest cannot give consent
            raise IntegrityError(
                f"{first} was tuned with Python code that comes with '{base.model}'. If you have read that "
                "code, allow it: --trust-remote-code, or load(…, trust_remote_code=True)."
            )
        self.settings = settings
        self.quantization = _resolve_quantization(settings, first)
        self.files = find_tuned_base(first, trust_remote_code=settings.trust_remote_code)
        self.fingerprint = self.files.fingerprint
        self.inputs = first.task.inputs_class.load(self.files, trust_remote_code=settings.trust_remote_code)
        self.inputs_fingerprint = self.inputs.fingerprint
        self.backbone = self._load_backbone()
        if (
            settings.precision == "fp16"
            and (model_type := self.backbone.config.model_type) in FP16_OVERFLOW_MODEL_TYPES
        ):
            raise IntegrityError(
                f"activations of '{base.model}' ({model_type}) leave the range of fp16: take bf16 or fp32."
            )
        if self.quantization is None:
            self.backbone.to(resolve_dtype(settings.precision, self.backbone.device))
        self.inputs.configure_model(self.backbone)
        self._inputs: dict[type[Inputs], Inputs] = {type(self.inputs): self.inputs}
        self.router = Router(self.backbone, self.inputs.probe(self.backbone, *PROBE_SHAPE))

    def inputs_for(self, task: Task) -> Inputs:
        """The inputs of a task; they share a loaded processor if both tasks prepare it in the same way."""
        inputs_class = task.inputs_class
        if inputs_class not in self._inputs:
            shared = (inputs_class.from_loaded(loaded) for loaded in self._inputs.values())
            inputs = next((inputs for inputs in shared if inputs is not None), None)
            trusted = self.settings.trust_remote_code
            self._inputs[inputs_class] = inputs or inputs_class.load(self.files, trust_remote_code=trusted)
        return self._inputs[inputs_class]

    def check(self, files: AdapterFiles) -> None:
        """Refuse an adapter of another base.

        Raises:
            IntegrityError: it has other base weights, another tokenizer or quantization, or its method does not work
                with this quantization.
        """
        self._check_identity(files.adapter)
        self._check_quantization(files)

    def _check_identity(self, adapter: Adapter) -> None:
        base = adapter.manifest.base
        for what, expected, found in (
            ("weights", base.fingerprint, self.fingerprint),
            (self.inputs.processor_name, base.inputs_fingerprint, self.inputs_fingerprint),
        ):
            if expected != found:
                raise IntegrityError(
                    f"{adapter} was tuned on '{base.model}' with {what} {expected[:12]}…, but the base in memory, "
                    f"'{self.files.model}' from {self.files.source}, has {found[:12]}…. One bank holds one base."
                )

    def _check_quantization(self, files: AdapterFiles) -> None:
        adapter, tuned = files.adapter, tuned_quantization(files.adapter)
        if self.settings.quantization is None and tuned != self.quantization:
            raise IntegrityError(
                f"{adapter} was tuned on its base in {tuned or FP32}, but the base in memory is in "
                f"{self.quantization or FP32}. One bank holds one base: load them separately, or set one quantization "
                "for all: --quantization none, 8bit or 4bit, or load(…, quantization=…)."
            )
        method = adapter.manifest.method
        conflict = method_info(method).quantization_error(method, files.config, self.quantization, serving=True)
        if conflict:
            raise IntegrityError(f"{adapter} cannot be loaded on this base: {conflict[1]}")

    def quantization_warning(self, files: AdapterFiles) -> str | None:
        """A sentence for an adapter that was tuned on the base in another quantization."""
        tuned = tuned_quantization(files.adapter)
        if tuned == self.quantization:
            return None
        return (
            f"{files.adapter} was tuned on its base in {tuned or FP32} and runs on it in "
            f"{self.quantization or FP32}: the scores in its manifest do not apply here."
        )

    def attach(self, files: AdapterFiles) -> AttachedAdapter:
        """Build the adapter's model on these weights.

        Raises:
            IntegrityError: it does not fit.
        """
        return self._attach_to(self.backbone, files)

    def full_precision_copy(self, files: AdapterFiles) -> PeftModel:
        """Build the adapter's model on a separate fp32 base; quantized weights are dequantized."""
        if self.quantization is None:
            return copy.deepcopy(self.attach(files).peft_model)
        return self._attach_to(self._load_backbone().dequantize(torch.float32), files).peft_model

    def _attach_to(self, backbone: Any, files: AdapterFiles) -> AttachedAdapter:
        attached = attach_adapter(files, backbone, self.files, trust_remote_code=self.settings.trust_remote_code)
        self.inputs_for(files.task).configure_model(attached.model)
        return attached

    def _load_backbone(self) -> Any:
        return load_backbone(
            self.files,
            quantization=self.quantization,
            device=self.settings.device,
            trust_remote_code=self.settings.trust_remote_code,
        )


def tuned_quantization(adapter: Adapter) -> Quantization | None:
    """The quantization of the base that an adapter was tuned on."""
    return adapter.manifest.base.quantization


def _resolve_quantization(settings: BankSettings, first: Adapter) -> Quantization | None:
    if settings.quantization is None:
        return tuned_quantization(first)
    return None if settings.quantization == "none" else settings.quantization


def find_tuned_base(adapter: Adapter, *, trust_remote_code: bool = False) -> BaseFiles:
    """Find the base of an adapter at its commit, or else at any commit; the caller compares the fingerprint.

    Raises:
        BaseNotFoundError: the base is not found.
    """
    base = adapter.manifest.base
    section = BaseSection(model=base.model, revision=base.revision, trust_remote_code=trust_remote_code)
    try:
        return find_base(section)
    except BaseNotFoundError:
        if not section.revision:
            raise
        return find_base(section.model_copy(update={"revision": None}))

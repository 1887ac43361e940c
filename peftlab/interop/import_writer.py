"""Write the files of an imported adapter, and compare its logits with those of plain PEFT before it is published."""

import json
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import PreTrainedModel

from peftlab.base import BaseFiles, load_backbone, load_with_head
from peftlab.errors import IntegrityError, PeftlabError
from peftlab.interop.comparison import LogitComparison, compare_logits
from peftlab.interop.head_layout import ImportTask, ModelLayout, reorder_outputs
from peftlab.interop.model_card import imported_card
from peftlab.interop.peft_files import SavedAdapter
from peftlab.runtime.adapter_files import AdapterFiles
from peftlab.runtime.adapter_loading import attach_adapter
from peftlab.runtime.adapter_template import extract_adapter
from peftlab.runtime.forward import forward_rows
from peftlab.runtime.loaded_base import PROBE_SHAPE
from peftlab.runtime.routing import Router
from peftlab.store import (
    CONFIG_FILE,
    PEFT_PREFIX,
    WEIGHTS_FILE,
    Adapter,
    BaseInfo,
    BaseMemory,
    ImportInfo,
    Manifest,
    ParameterCounts,
    build_manifest,
)
from peftlab.tasks.inputs.inputs import Inputs

BATCH_SHAPE = (4, 16)  # rows × tokens of the batch on which logits are compared
MISMATCH_ADVICE = "Was it trained on another base (--base), or for another task (--task)?"
MISSING_ADVICE = "The missing tensors were not saved with it: PEFT saves the modules in modules_to_save."


@dataclass(frozen=True, kw_only=True)
class ImportWriter:
    """Everything that is known about an adapter before it is published; `started` is a time of `time.monotonic`."""

    saved: SavedAdapter
    import_task: ImportTask
    base_files: BaseFiles
    inputs: Inputs
    layout: ModelLayout
    warnings: list[str]
    max_length: int
    device: str
    trust_remote_code: bool
    started: float

    def write(self, name: str, folder: Path) -> Manifest:
        """Write the adapter's files to `folder`, load them from there, and compare logits; return the manifest.

        Raises:
            IntegrityError: the adapter does not fit the base, or has other logits than with plain PEFT.
        """
        model, new_names = self._load_model()
        pretrained = self._pretrained_head_tensors(model, new_names)
        tensors = reorder_outputs(self.saved.tensors, self.layout.outputs, self.import_task.order) | pretrained
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        config = self._build_config(tensors.keys())
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf8")
        backbone = self._load_backbone()
        manifest = self._build_manifest(name, sum(weight.numel() for weight in backbone.parameters()), config)
        unpublished = _UnpublishedAdapter(self.saved.source, 0, folder, manifest)
        logits = self._peftlab_logits(AdapterFiles(unpublished, self.import_task.task, config, tensors), backbone)
        self._check_complete(new_names)
        comparison = compare_logits(logits, self._peft_logits(model))
        if not comparison.is_equal:
            raise IntegrityError(
                f"'{self.saved.source}' was not imported: {comparison} from those that plain PEFT gives. Please report "
                "this with the adapter."
            )
        imported = self._import_info(comparison)
        manifest = manifest.model_copy(update={"imported": imported, "seconds": self._seconds()})
        (folder / "README.md").write_text(imported_card(manifest, imported), encoding="utf8")
        return manifest

    def _load_model(self) -> tuple[PreTrainedModel, set[str]]:
        """Load the task's model by Transformers; return it with the names that the base's checkpoint lacks."""
        with describe_errors(f"base '{self.base_files.model}' cannot be loaded"):
            return load_with_head(
                self.base_files,
                self.import_task.task,
                keep_head=True,
                device=self.device,
                trust_remote_code=self.trust_remote_code,
            )

    def _load_backbone(self) -> PreTrainedModel:
        with describe_errors(f"base '{self.base_files.model}' cannot be loaded"):
            return load_backbone(self.base_files, trust_remote_code=self.trust_remote_code, device=self.device)

    def _pretrained_head_tensors(self, model: PreTrainedModel, new_names: set[str]) -> dict[str, torch.Tensor]:
        """Tensors of the head that PEFT did not save because they come from the base's checkpoint, as in ModernBERT."""
        prefix = f"{model.base_model_prefix}."
        head = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(prefix)}
        pretrained = {f"{PEFT_PREFIX}{name}": tensor for name, tensor in head.items() if name not in new_names}
        return {name: tensor.cpu().clone() for name, tensor in pretrained.items() if name not in self.saved.tensors}

    def _build_config(self, tensors: Set[str]) -> dict[str, Any]:
        """PEFT's configuration with full module names and the base found here, without initialization options."""
        known = {key: value for key, value in self.saved.config.items() if key not in self.saved.unknown_keys}
        base = {
            "base_model_name_or_path": self.base_files.model,
            "revision": self.base_files.revision,
            "inference_mode": True,
        }
        no_init = {"init_lora_weights": True, "eva_config": None}
        base |= {key: value for key, value in no_init.items() if key in known}
        return known | base | {"modules_to_save": self._full_modules(tensors)}

    def _full_modules(self, tensors: Set[str]) -> list[str]:
        """The outermost modules that the files contain in full; PEFT matches names by their ends."""
        suffixes, names = tuple(self.saved.config.get("modules_to_save") or ()), list[str]()
        pretrained = tensors - self.saved.tensors.keys()
        pretrained_modules = {name.removeprefix(PEFT_PREFIX).rpartition(".")[0] for name in pretrained}
        for name in self.layout.modules:
            has_tensors = any(tensor.startswith(f"{PEFT_PREFIX}{name}.") for tensor in tensors)
            is_saved = name in pretrained_modules or (name.endswith(suffixes) and has_tensors)
            if is_saved and not any(name.startswith(f"{outer}.") for outer in names):
                names.append(name)
        return names

    @torch.inference_mode()
    def _peftlab_logits(self, files: AdapterFiles, backbone: PreTrainedModel) -> torch.Tensor:
        """Compute the logits as a bank does."""
        with describe_errors(f"PEFT cannot put '{self.saved.source}' on '{self.base_files.model}'"):
            try:
                attached = attach_adapter(files, backbone, self.base_files, trust_remote_code=self.trust_remote_code)
            except IntegrityError as error:
                advice = f"{MISMATCH_ADVICE} {MISSING_ADVICE}" if ": missing" in str(error) else MISMATCH_ADVICE
                raise IntegrityError(f"{error}\n{advice}") from error
            router = Router(backbone, self.inputs.probe(backbone, *PROBE_SHAPE))
            loaded, _ = extract_adapter(files, attached, router)
            batch = self.inputs.random_batch(backbone, *BATCH_SHAPE)
            if loaded.is_routed:
                return torch.stack(forward_rows([loaded] * BATCH_SHAPE[0], batch, router, self.inputs)).cpu()
            return files.task.head.logits(loaded.model(**batch)).float().cpu()

    @torch.inference_mode()
    def _peft_logits(self, model: PreTrainedModel) -> torch.Tensor:
        """Compute the logits by PEFT and Transformers from the saved files, with the outputs in our order."""
        task, order = self.import_task.task, self.import_task.order
        with describe_errors(f"PEFT cannot put '{self.saved.source}' on '{self.base_files.model}'"):
            peft_model = PeftModel.from_pretrained(model, self.saved.folder).to(model.device).eval()
            logits = task.head.logits(peft_model(**self.inputs.random_batch(model, *BATCH_SHAPE))).float().cpu()
        return logits[..., order] if order else logits

    def _check_complete(self, new_names: set[str]) -> None:
        """Raise IntegrityError if neither the base nor the adapter has some tensors of the model."""
        missing = sorted(name for name in new_names if f"{PEFT_PREFIX}{name}" not in self.saved.tensors)
        if missing:
            raise IntegrityError(
                f"'{self.saved.source}' cannot be imported: neither it nor '{self.base_files.model}' has "
                f"{', '.join(missing)}, which were newly initialized in training and not saved."
            )

    def _import_info(self, comparison: LogitComparison) -> ImportInfo:
        saved, order = self.saved, self.import_task.order
        return ImportInfo(
            source=saved.origin,
            place=saved.place,
            commit=saved.commit,
            peft_version=saved.config.get("peft_version"),
            head_order=tuple(order) if order else None,
            notes=tuple(self.warnings),
            difference=comparison.difference,
            largest_logit=comparison.largest_logit,
        )

    def _seconds(self) -> float:
        return round(time.monotonic() - self.started, 1)

    def _build_manifest(self, name: str, num_base_parameters: int, config: dict[str, Any]) -> Manifest:
        base = BaseInfo(
            model=self.base_files.model,
            revision=self.base_files.revision,
            fingerprint=self.base_files.fingerprint,
            inputs_fingerprint=self.inputs.fingerprint,
            trust_remote_code=self.trust_remote_code,
            quantization=None,
            pretrained_head=(),
            memory=BaseMemory(fp32=4 * num_base_parameters, in_memory=4 * num_base_parameters),
        )
        num_trained = sum(tensor.numel() for tensor in self.saved.tensors.values())
        return build_manifest(
            name,
            self.import_task.task,
            base,
            method=self.saved.method,
            max_length=self.max_length,
            parameters=ParameterCounts(trained=num_trained, base=num_base_parameters),
            head_modules=tuple(config["modules_to_save"]),
            seconds=self._seconds(),
        )


class _UnpublishedAdapter(Adapter):
    """An adapter without a version; messages name its source."""

    def __str__(self) -> str:
        return f"'{self.name}'"


@contextmanager
def describe_errors(what: str) -> Iterator[None]:
    """Raise IntegrityError, with one sentence, for any error of PEFT or Transformers inside the block."""
    try:
        yield
    except (PeftlabError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:  # an error of the disk, not of the files
            raise
        lines = str(error).strip().splitlines() or ["no reason given"]
        raise IntegrityError(f"{what}: {type(error).__name__}: {lines[0]}") from error

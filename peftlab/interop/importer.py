"""An adapter enters the store from elsewhere: what plain PEFT saved becomes published, if it answers here as there."""

import importlib.metadata
import json
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import PreTrainedModel

from peftlab.base import BaseFiles, find_base, load_backbone, load_with_head
from peftlab.errors import BaseNotFoundError, ErrorCollector, IntegrityError, PeftlabError
from peftlab.interop.head_layout import (
    Blank,
    Told,
    blank_model,
    check_length,
    check_widths,
    in_our_order,
    told_task,
)
from peftlab.interop.model_card import imported_card
from peftlab.interop.peft_files import SavedAdapter, find_saved
from peftlab.recipe import BaseSection
from peftlab.runtime.adapter_files import AdapterFiles
from peftlab.runtime.adapter_loading import attach_adapter
from peftlab.runtime.adapter_template import extract_adapter
from peftlab.runtime.forward import forward_rows
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
    Store,
    build_manifest,
)
from peftlab.tasks.inputs.inputs import Inputs

TOLERANCE = 1e-4  # of the largest logit
PROBE = (4, 16)  # rows × tokens
UNFIT = "Was it trained on another base (--base), or for another task (--task)?"
UNSAVED = "What is missing was not saved with it: PEFT saves what modules_to_save names."


@dataclass(frozen=True)
class Imported:
    """A published adapter that was trained elsewhere; `origin` says where it came from, with notes for its user."""

    adapter: Adapter
    base: BaseFiles
    origin: ImportInfo

    @property
    def notes(self) -> Sequence[str]:
        """Sentences that the user of the adapter should know."""
        return self.origin.notes

    @property
    def difference(self) -> float:
        """The largest difference between the logits of peftlab and of plain PEFT, on random tokens."""
        return self.origin.difference

    @property
    def largest(self) -> float:
        """The largest of these logits."""
        return self.origin.largest_logit


def import_adapter(
    source: str | Path,
    name: str,
    *,
    task: str,
    labels: Sequence[str] | None = None,
    multi_label: bool = False,
    threshold: float | None = None,
    base: str | None = None,
    max_length: int | None = None,
    revision: str | None = None,
    store: str | Path = "adapters",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> Imported:
    """Publish an adapter that plain PEFT saved, after comparing what it answers here with what PEFT makes of it.

    Args:
        source: A folder with adapter_config.json and adapter_model.safetensors, or the Hub id of one.
        name: What it is to be called in the store.
        task: token-classification, text-classification, regression or question-answering.
        labels: Of each output of its head, in their order; tags (O, B-PER, …) for token-classification.
        multi_label, threshold: As in a recipe for text-classification.
        base: Folder, Hub id or packaged model; None takes what the adapter's configuration names.
        max_length: The longest input in tokens; None for what the base takes.
        revision: Hub branch, tag or commit of `source`.
        store: Folder of the store.
        device: auto, cpu, cuda or mps: where it is compared.
        trust_remote_code: Run Python code that comes with the base.

    Raises:
        AdapterNotFoundError: `source` is nowhere, or `name` cannot be a name.
        BaseNotFoundError: its base is nowhere, or not named.
        DeviceNotFoundError: there is no such device.
        IntegrityError: it cannot be read or served, does not fit the base, or answers otherwise than with plain PEFT.
        RecipeError: task, labels or options are not its own; lists every problem.
        StoreError: the store cannot be written.
    """
    began, shelf = time.monotonic(), Store(store)
    shelf.versions(name)  # refuses what cannot be a name before anything is looked for
    saved = find_saved(str(source), revision)
    told = told_task(task, labels, multi_label=multi_label, threshold=threshold, saved=saved)
    files, notes = _find_base(saved, base, trust_remote_code)
    with _in_words(f"base '{files.model}' cannot be loaded"):
        inputs = told.task.inputs_class.load(files, trust_remote_code=trust_remote_code)
        blank = blank_model(told.task, files, inputs, trust_remote_code=trust_remote_code)
    with ErrorCollector() as errors:
        check_widths(told.task, saved.tensors, blank, errors)
        check_length(max_length, blank, errors)
    notes += _notes(saved, told)
    entry = _Entry(saved, told, files, inputs, blank, notes, max_length, device, trust_remote_code, began)
    adapter = shelf.publish(name, lambda folder: entry.write(name, folder))
    origin = adapter.manifest.imported
    assert origin
    return Imported(adapter, files, origin)


def _find_base(saved: SavedAdapter, asked: str | None, trust_remote_code: bool) -> tuple[BaseFiles, list[str]]:
    """The base asked for, or else the one that the adapter names; and what is to be known of it.

    Raises:
        BaseNotFoundError: it is nowhere, or the adapter names none.
    """
    named, revision = (saved.config.get(key) for key in ("base_model_name_or_path", "revision"))
    model = asked or named
    if not (isinstance(model, str) and model):
        raise BaseNotFoundError(
            f"'{saved.source}' does not name the base that it was trained on. Name it: --base MODEL"
        )
    wanted = None if asked or not isinstance(revision, str) else revision
    section = BaseSection(model=model, revision=wanted, trust_remote_code=trust_remote_code)
    files = _base_of(
        section, "" if asked else f" '{saved.source}' names it as its base; name another place with --base."
    )
    if files.source == "local folder":
        files = replace(files, model=str(files.folder.absolute()))
    notes = [f"'{saved.source}' does not tell which weights its base had in training: taken are those found here."]
    if wanted and files.revision != wanted:
        notes.append(f"it names revision '{wanted}' of its base; found was {files.revision or 'one without a number'}.")
    if asked and named and named != asked:
        notes.append(f"it names another base, '{named}'.")
    return files, notes


def _base_of(section: BaseSection, advice: str) -> BaseFiles:
    """At its revision, or else anywhere, as adapters of the store are served."""
    try:
        return find_base(section)
    except BaseNotFoundError as error:
        if section.revision:
            return _base_of(section.model_copy(update={"revision": None}), advice)
        raise BaseNotFoundError(f"{error}\n{advice.strip()}".strip()) from None


def _notes(saved: SavedAdapter, told: Told) -> list[str]:
    """What is otherwise here than in the files that it came with."""
    notes = []
    if saved.unknown_keys:
        version = importlib.metadata.version("peft")
        notes.append(f"PEFT {version} does not know {', '.join(saved.unknown_keys)} of its configuration: left out.")
    if told.order and told.order != sorted(told.order):
        notes.append(f"the outputs of its head are in another order now: {', '.join(told.task.head.labels)}.")
    if told.task.options.get("token_types") is False:
        notes.append("PEFT's class for question answering gives the base no token types, so neither does peftlab here.")
    return notes


@dataclass(frozen=True)
class _Entry:
    """Everything known of an adapter that is about to be published."""

    saved: SavedAdapter
    told: Told
    files: BaseFiles
    inputs: Inputs
    blank: Blank
    notes: list[str]
    max_length: int | None
    device: str
    trust_remote_code: bool
    began: float

    def write(self, name: str, folder: Path) -> Manifest:
        """Write the files of the adapter into `folder`, attach it from there, and compare; returns the manifest.

        Raises:
            IntegrityError: it does not fit the base, or answers otherwise than with plain PEFT.
        """
        model, new = self._whole_model()
        kept = self._kept(model, new)
        tensors = in_our_order(self.saved.tensors, self.blank.outputs, self.told.order) | kept
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        config = self._config(tensors.keys())
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf8")
        backbone = self._backbone()
        manifest = self._manifest(name, sum(weight.numel() for weight in backbone.parameters()), config)
        unpublished = _Unpublished(self.saved.source, 0, folder, manifest)
        served = self._served(AdapterFiles(unpublished, self.told.task, config, tensors), backbone)
        self._check_whole(new)
        plain = self._plain(model)
        difference, largest = float((served - plain).abs().max()), float(plain.abs().max())
        if not difference <= TOLERANCE * largest:  # also for NaN
            raise IntegrityError(
                f"'{self.saved.source}' was not imported: its logits (up to {largest:.3g}) differ by {difference:.3g} "
                "from those that plain PEFT gives. Please report this with the adapter."
            )
        imported = self._import_info(difference, largest)
        manifest = manifest.model_copy(update={"imported": imported, "seconds": self._seconds()})
        (folder / "README.md").write_text(imported_card(manifest, imported), encoding="utf8")
        return manifest

    def _whole_model(self) -> tuple[PreTrainedModel, set[str]]:
        """The task's model as Transformers loads it, and the names of what the base's checkpoint lacks of it."""
        trusted: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        with _in_words(f"base '{self.files.model}' cannot be loaded"):
            return load_with_head(self.files, self.told.task, device=self.device, **trusted)

    def _kept(self, model: PreTrainedModel, new: set[str]) -> dict[str, torch.Tensor]:
        """What of the head is the checkpoint's own, such as ModernBERT's, and so was not saved with the adapter."""
        inside = f"{model.base_model_prefix}."
        outside = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(inside)}
        own = {f"{PEFT_PREFIX}{name}": tensor for name, tensor in outside.items() if name not in new}
        return {name: tensor.cpu().clone() for name, tensor in own.items() if name not in self.saved.tensors}

    def _config(self, tensors: Set[str]) -> dict[str, Any]:
        """PEFT's, with modules by their whole names, and without what would begin or name anything anew."""
        known = {key: value for key, value in self.saved.config.items() if key not in self.saved.unknown_keys}
        base = {"base_model_name_or_path": self.files.model, "revision": self.files.revision, "inference_mode": True}
        begun = {"init_lora_weights": True, "eva_config": None}
        base |= {key: value for key, value in begun.items() if key in known}
        return known | base | {"modules_to_save": self._held(tensors)}

    def _held(self, tensors: Set[str]) -> list[str]:
        """The outermost modules that its files hold whole: PEFT goes by the ends of their names."""
        ends, names = tuple(self.saved.config.get("modules_to_save") or ()), list[str]()
        kept = {tensor.removeprefix(PEFT_PREFIX).rpartition(".")[0] for tensor in tensors - self.saved.tensors.keys()}
        for name in self.blank.modules:
            inside = any(tensor.startswith(f"{PEFT_PREFIX}{name}.") for tensor in tensors)
            asked = name in kept or (name.endswith(ends) and inside)
            if asked and not any(name.startswith(f"{outer}.") for outer in names):
                names.append(name)
        return names

    def _backbone(self) -> PreTrainedModel:
        with _in_words(f"base '{self.files.model}' cannot be loaded"):
            return load_backbone(self.files, trust_remote_code=self.trust_remote_code, device=self.device)

    @torch.inference_mode()
    def _served(self, read: AdapterFiles, backbone: PreTrainedModel) -> torch.Tensor:
        """The logits that a bank gives."""
        with _in_words(f"PEFT cannot put '{self.saved.source}' on '{self.files.model}'"):
            try:
                attached = attach_adapter(read, backbone, self.files, trust_remote_code=self.trust_remote_code)
            except IntegrityError as error:
                advice = f"{UNFIT} {UNSAVED}" if ": missing" in str(error) else UNFIT
                raise IntegrityError(f"{error}\n{advice}") from error
            router, inputs = Router(backbone, self.inputs.probe(backbone, 3, 5)), _probe(backbone)
            loaded, _ = extract_adapter(read, attached, router)
            if loaded.is_routed:
                return torch.stack(forward_rows([loaded] * PROBE[0], inputs, router, self.inputs)).cpu()
            return read.task.head.logits(loaded.model(**inputs)).float().cpu()

    @torch.inference_mode()
    def _plain(self, model: PreTrainedModel) -> torch.Tensor:
        """The logits that PEFT and Transformers give with the files as they came, its outputs in our order."""
        with _in_words(f"PEFT cannot put '{self.saved.source}' on '{self.files.model}'"):
            adapted = PeftModel.from_pretrained(model, self.saved.folder).to(model.device).eval()
            logits = self.told.task.head.logits(adapted(**_probe(model))).float().cpu()
        return logits[..., self.told.order] if self.told.order else logits

    def _check_whole(self, new: set[str]) -> None:
        """Raises IntegrityError if anything was made anew that neither the base nor the adapter holds."""
        lost = sorted(name for name in new if f"{PEFT_PREFIX}{name}" not in self.saved.tensors)
        if lost:
            raise IntegrityError(
                f"'{self.saved.source}' cannot be imported: neither it nor '{self.files.model}' holds "
                f"{', '.join(lost)}, which was made anew when it was trained, and not saved."
            )

    def _import_info(self, difference: float, largest_logit: float) -> ImportInfo:
        saved, order = self.saved, self.told.order
        return ImportInfo(
            source=saved.origin,
            place=saved.place,
            commit=saved.commit,
            peft_version=saved.config.get("peft_version"),
            head_order=tuple(order) if order else None,
            notes=tuple(self.notes),
            difference=difference,
            largest_logit=largest_logit,
        )

    def _seconds(self) -> float:
        return round(time.monotonic() - self.began, 1)

    def _manifest(self, name: str, weights: int, config: dict[str, Any]) -> Manifest:
        base = BaseInfo(
            model=self.files.model,
            revision=self.files.revision,
            fingerprint=self.files.fingerprint,
            inputs_fingerprint=self.inputs.fingerprint,
            trust_remote_code=self.trust_remote_code,
            quantization=None,
            pretrained_head=(),
            memory=BaseMemory(fp32=4 * weights, in_memory=4 * weights),
        )
        return build_manifest(
            name,
            self.told.task,
            base,
            method=self.saved.method,
            max_length=self.max_length or self.blank.max_length,
            parameters=ParameterCounts(trained=sum(t.numel() for t in self.saved.tensors.values()), base=weights),
            head_modules=tuple(config["modules_to_save"]),
            seconds=self._seconds(),
        )


class _Unpublished(Adapter):
    """An adapter that is told by where it comes from, as it has no version yet."""

    def __str__(self) -> str:
        return f"'{self.name}'"


def _probe(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Random tokens, the same for every model of one vocabulary."""
    tokens = torch.randint(model.config.vocab_size, PROBE, generator=torch.Generator().manual_seed(0))
    return {"input_ids": tokens.to(model.device), "attention_mask": torch.ones_like(tokens).to(model.device)}


@contextmanager
def _in_words(what: str) -> Iterator[None]:
    """What strange files make PEFT and Transformers stumble over may be an error of any kind: told in one sentence."""
    try:
        yield
    except (PeftlabError, MemoryError):
        raise
    except Exception as fault:
        if isinstance(fault, OSError) and fault.errno:  # the disk, not the files
            raise
        told = str(fault).strip().splitlines() or ["no reason given"]
        raise IntegrityError(f"{what}: {type(fault).__name__}: {told[0]}") from fault

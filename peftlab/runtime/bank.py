"""The bank: adapters in memory beside one resident base.

The backbone's weights are in memory once. Each adapter has a tree of modules of its own on them, in the architecture's
own `AutoModelFor…` class with its own head, into which PEFT puts its delta. So adapters of any method and heads of any
width live beside each other without knowing of one another; PEFT alone holds them only if they are alike.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import transformers
from peft import PeftConfig, inject_adapter_in_model
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from safetensors.torch import load_file

import peftlab.methods  # noqa: F401  # by which PEFT knows our own tuner
from peftlab.base import BaseFiles, find_base, head_config, load_backbone, load_tokenizer, tokenizer_hash
from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.errors import AdapterNotFoundError, BaseNotFoundError, IntegrityError, Problems, suggest
from peftlab.recipe import BaseSection, Quantization, refusal
from peftlab.store import Adapter, Store
from peftlab.tasks import Prediction, Task, task_from_manifest
from peftlab.tasks.predicting import predict_examples
from peftlab.tasks.tokenizing import Told

Asked = str | Mapping[str, Any] | Row
"""A text, or the columns that a task asks for."""
PEFT_PREFIX = "base_model.model."
QUANTIZATIONS = ("none", *get_args(Quantization))
FP32 = "fp32"
PEFT_ASKS = ("is_loaded_in_8bit", "is_loaded_in_4bit")  # a model, to tell how to wrap its layers
KEY = "served"  # an adapter's name inside its own layers: our word, never the user's text


@dataclass(frozen=True)
class Answer:
    """One row through one adapter. `prediction` is of the adapter's task, such as `Entities`."""

    adapter: str
    prediction: Prediction

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: `adapter`, then the prediction's own."""
        return {"adapter": self.adapter, **self.prediction.as_dict()}


@dataclass(frozen=True)
class _Loaded:
    """An adapter in memory."""

    adapter: Adapter
    task: Task
    model: torch.nn.Module


def load(
    *names: str,
    store: str | Path = "adapters",
    device: str = "auto",
    quantization: Literal["none"] | Quantization | None = None,
    trust_remote_code: bool = False,
) -> "Bank":
    """Verify adapters and put them beside one resident base.

    Args:
        names: `name` or `name@version`, all tuned on the same base.
        store: Folder of the store.
        device: auto, cpu, cuda or mps.
        quantization: Hold the base so, whatever the adapters were tuned on (`Bank.notes` says where that differs); None
            takes it as the first was tuned on.
        trust_remote_code: Run Python code that comes with the base, if the adapter was tuned with it.

    Raises:
        AdapterNotFoundError: no such adapter.
        BaseNotFoundError: their base is nowhere.
        DeviceNotFoundError: there is no such device, or it cannot compute with a quantized base.
        IntegrityError: an adapter is damaged, was tuned on another base, or needs code that is not trusted.
        ValueError: no such quantization.
    """
    if not names:
        raise AdapterNotFoundError(f"name at least one adapter. {suggest('', Store(store).names(), what='There')}")
    bank = Bank(Store(store), device=device, quantization=quantization, trust_remote_code=trust_remote_code)
    for name in names:
        bank.add(name)
    return bank


class Bank:
    """Adapters beside one base, which the first of them brings.

    `notes` has a sentence for each adapter that was tuned on the base in another quantization than the one asked for.
    """

    def __init__(
        self,
        store: Store,
        *,
        device: str = "auto",
        quantization: Literal["none"] | Quantization | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if quantization is not None and quantization not in QUANTIZATIONS:
            raise ValueError(f"no quantization '{quantization}'. {suggest(str(quantization), QUANTIZATIONS)}")
        self.store = store
        self.device = device
        self.asked_quantization = quantization
        self.trust_remote_code = trust_remote_code
        self.notes: list[str] = []
        self._loaded: dict[str, _Loaded] = {}

    @property
    def names(self) -> list[str]:
        """What was added, as it was named, in order."""
        return list(self._loaded)

    def adapter(self, name: str) -> Adapter:
        """A loaded adapter as the store holds it."""
        return self._loaded[name].adapter

    def task(self, name: str) -> Task:
        """The task of a loaded adapter, with its labels."""
        return self._loaded[name].task

    def add(self, name: str) -> None:
        """Verify an adapter and bring it into memory; one that is there already stays as it is.

        Raises:
            AdapterNotFoundError: no such adapter.
            BaseNotFoundError: its base is nowhere.
            IntegrityError: it is damaged, was tuned on another base, or needs code that is not trusted.
        """
        if name in self._loaded:
            return
        adapter = self.store.verify(name)
        if not self._loaded:
            self._load_base(adapter)
        self._check_base(adapter)
        task = task_from_manifest(adapter.manifest["task"])
        self._loaded[name] = _Loaded(adapter, task, self._attach(adapter, task))
        if _tuned_on(adapter) != self.quantization:
            self.notes.append(
                f"{adapter} was tuned on its base in {_tuned_on(adapter) or FP32} and runs on it in "
                f"{self.quantization or FP32}: the scores in its manifest do not hold here."
            )

    def predict(self, rows: Asked | Sequence[Asked], *, adapters: str | Sequence[str] | None = None) -> list[Answer]:
        """Each row through its adapter.

        Args:
            rows: One or several: a text, or a mapping with the columns of the adapter's task, such as `question` and
                `context`. A bare text is the first of these columns.
            adapters: One name for all rows, or one a row; None takes the only adapter there is.

        Returns:
            One answer a row, in order. Texts longer than the adapter's input go through in overlapping windows.

        Raises:
            AdapterNotFoundError: a name was not added.
            RecipeError: a row is not what its task takes; lists every such row.
            ValueError: not as many names as rows.
        """
        asked = [rows] if isinstance(rows, str | Mapping | Row) else list(rows)
        names = self._names_for(len(asked), adapters)
        examples = self._read(asked, names)
        answers: dict[int, Answer] = {}
        for name in dict.fromkeys(names):  # one forward pass an adapter; sharing one is the router's work to come
            chosen = [i for i, other in enumerate(names) if other == name]
            for i, prediction in zip(chosen, self.run(name, [examples[i] for i in chosen]), strict=True):
                answers[i] = Answer(name, prediction)
        return [answers[i] for i in range(len(asked))]

    def run(self, name: str, examples: Sequence[Any], told: Told = lambda done, total: None) -> list[Any]:
        """Predictions for examples of the adapter's own task, in order; `told` hears how far it is."""
        loaded = self._loaded[name]
        max_length = loaded.adapter.manifest["max_length"]
        return predict_examples(loaded.task, loaded.model, self._tokenizer, examples, max_length=max_length, told=told)

    def _read(self, asked: Sequence[Asked], names: Sequence[str]) -> list[Any]:
        examples = []
        with Problems() as problems:
            for number, (row, name) in enumerate(zip(asked, names, strict=True), start=1):
                task = self._loaded[name].task
                try:
                    examples.append(task.read_input(_as_row(row, task, number)))
                except RowError as error:
                    problems.add(f"{error}", where=row.where if isinstance(row, Row) else f"row {number}")
        return examples

    def _names_for(self, rows: int, adapters: str | Sequence[str] | None) -> list[str]:
        if adapters is None:
            if len(self._loaded) != 1:
                raise AdapterNotFoundError(f"say which adapter each text goes through: {', '.join(self._loaded)}.")
            adapters = next(iter(self._loaded))
        names = [adapters] * rows if isinstance(adapters, str) else list(adapters)
        if len(names) != rows:
            raise ValueError(f"{rows} texts need {rows} adapter names, not {len(names)}")
        for name in names:
            if name not in self._loaded:
                raise AdapterNotFoundError(f"'{name}' was not loaded. {suggest(name, self._loaded, what='Loaded')}")
        return names

    def _load_base(self, adapter: Adapter) -> None:
        base = adapter.manifest["base"]
        if base["trust_remote_code"] and not self.trust_remote_code:  # what a stranger's manifest says is not consent
            raise IntegrityError(
                f"{adapter} was tuned with Python code that comes with '{base['model']}'. If you have read that code, "
                "allow it: --trust-remote-code, or load(…, trust_remote_code=True)."
            )
        trusted, asked = self.trust_remote_code, self.asked_quantization
        section = BaseSection(model=base["model"], revision=base["revision"], trust_remote_code=trusted)
        self.quantization = _tuned_on(adapter) if asked is None else None if asked == "none" else asked
        self._files = _find_tuned_base(section)
        self._fingerprint = self._files.fingerprint
        self._tokenizer = load_tokenizer(self._files, trust_remote_code=trusted)
        self._tokenizer_hash = tokenizer_hash(self._tokenizer)
        self._backbone = load_backbone(
            self._files, trust_remote_code=trusted, quantization=self.quantization, device=self.device
        )

    def _check_base(self, adapter: Adapter) -> None:
        base = adapter.manifest["base"]
        for what, expected, found in (
            ("weights", base["fingerprint"], self._fingerprint),
            ("tokenizer", base["tokenizer_sha256"], self._tokenizer_hash),
        ):
            if expected != found:
                raise IntegrityError(
                    f"{adapter} was tuned on '{base['model']}' with {what} {expected[:12]}…, but the base in memory, "
                    f"'{self._files.model}' from {self._files.source}, has {found[:12]}…. One bank holds one base."
                )
        if self.asked_quantization is None and _tuned_on(adapter) != self.quantization:
            expected, found = _tuned_on(adapter) or FP32, self.quantization or FP32
            raise IntegrityError(
                f"{adapter} was tuned on its base in {expected}, but the base in memory is in {found}. One bank holds "
                "one base: load them apart, or say which all are to share, by --quantization none, 8bit or 4bit, or "
                "load(…, quantization=…)."
            )

    def _attach(self, adapter: Adapter, task: Task) -> torch.nn.Module:
        """The task's own model class on the backbone's weights, with the adapter's head and delta in place."""
        with torch.device("meta"):
            config = transformers.AutoConfig.from_pretrained(
                self._files.folder, trust_remote_code=self.trust_remote_code, **head_config(task)
            )
            model = getattr(transformers, task.auto_class).from_config(config, trust_remote_code=self.trust_remote_code)
        for flag in PEFT_ASKS:
            setattr(model, flag, getattr(self._backbone, flag, False))
        prefix = model.base_model_prefix
        delta, tensors = PeftConfig.from_pretrained(adapter.folder), _tensors(adapter)
        method = "dora" if getattr(delta, "use_dora", False) else adapter.manifest["method"]
        if reason := refusal(method, self.quantization):
            raise IntegrityError(f"{adapter} cannot be put beside this base: {reason}")
        own = [name for name in delta.modules_to_save or () if name.startswith(f"{prefix}.")]
        fresh = {name.removeprefix(f"{prefix}."): model.get_submodule(name) for name in own}
        setattr(model, prefix, _own_tree(self._backbone, fresh))
        try:
            if _aim(delta, tensors):  # there is no delta where only the head was trained
                inject_adapter_in_model(delta, model, adapter_name=KEY)
            placed = _placed(delta, tensors, model, own)
        except (IntegrityError, TypeError, ValueError) as faults:  # the latter are PEFT's, of a layer's kind or size
            raise IntegrityError(f"{adapter} does not fit its base:\n{faults}") from None
        model.load_state_dict(placed, strict=False, assign=True)
        return model.requires_grad_(False).to(self._backbone.device).eval()


def _tuned_on(adapter: Adapter) -> Quantization | None:
    """How its base was held; adapters of older versions know of fp32 only."""
    return adapter.manifest["base"].get("quantization")


def _find_tuned_base(section: BaseSection) -> BaseFiles:
    """The base at the commit it had when tuning, or else anywhere: its fingerprint is compared in any case."""
    try:
        return find_base(section)
    except BaseNotFoundError:
        if not section.revision:
            raise
        return find_base(section.model_copy(update={"revision": None}))


def _as_row(asked: Asked, task: Task, number: int) -> Row:
    if isinstance(asked, Row):
        return asked
    fields = {task.input_columns[0]: asked} if isinstance(asked, str) else dict(asked)
    return Row(fields, f"row {number}")


def _own_tree(module: torch.nn.Module, fresh: Mapping[str, torch.nn.Module], path: str = "") -> torch.nn.Module:
    """The same modules anew, on the same weights, so that what is done to one tree no other tree sees.

    `fresh` takes the place of some, by name: modules that the adapter holds whole, such as a pooler that the checkpoint
    lacks, or trained layers.
    """
    twin = copy.copy(module)
    twin._parameters, twin._buffers = dict(module._parameters), dict(module._buffers)
    twin._modules = {name: _own_child(child, fresh, f"{path}{name}") for name, child in module._modules.items()}
    return twin


def _own_child(
    child: torch.nn.Module | None, fresh: Mapping[str, torch.nn.Module], name: str
) -> torch.nn.Module | None:
    if name in fresh:
        return fresh[name]
    return None if child is None else _own_tree(child, fresh, f"{name}.")


def _aim(config: PeftConfig, tensors: Iterable[str]) -> bool:
    """Aim an adapter's PEFT configuration at the very layers it adapts, if any; its head is ours to hold.

    Its own `target_modules` may fit more here: the shared backbone has layers, such as BERT's pooler, that the
    architecture's task classes leave out.
    """
    own = f".{PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type]}"  # `….query.lora_A.weight` adapts `….query`
    config.target_modules = {name.rpartition(own)[0] for name in tensors if own in name}
    config.modules_to_save = None
    return bool(config.target_modules)


def _tensors(adapter: Adapter) -> dict[str, torch.Tensor]:
    """The adapter's tensors by the names they have in a plain Transformers model."""
    saved = load_file(adapter.folder / "adapter_model.safetensors")
    return {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in saved.items()}


def _placed(
    config: PeftConfig, tensors: dict[str, torch.Tensor], model: torch.nn.Module, own: Sequence[str]
) -> dict[str, torch.Tensor]:
    """`tensors` by their names in `model`: those of the delta as PEFT's method places them, the head as it is.

    Raises:
        IntegrityError: names or shapes differ. PEFT would load an adapter of another depth or task without a word.
    """
    tuner, state = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type], model.state_dict()
    tensors = tuner._remap_adapter_state_dict_for_load(model, config, KEY, tensors)
    inside, head = f"{model.base_model_prefix}.", tuple(f"{name}." for name in own)
    wanted = {name for name in state if not name.startswith(inside) or name.startswith(head)}
    wanted |= {name for name in state if KEY in name.split(".")}
    faults = [f"{name}: missing" for name in wanted - tensors.keys()]
    faults += [f"{name}: not in this model" for name in tensors.keys() - wanted]
    faults += [
        f"{name}: {tuple(tensors[name].shape)} where the model has {tuple(state[name].shape)}"
        for name in tensors.keys() & wanted
        if tensors[name].shape != state[name].shape
    ]
    if faults:
        raise IntegrityError("\n".join(f"  {fault}" for fault in sorted(faults)).replace(f".{KEY}", ""))
    return tensors

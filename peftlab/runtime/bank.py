"""The bank: adapters in memory beside one resident base.

The backbone's weights are in memory once. Each adapter has a tree of modules of its own on them, in the architecture's
own `AutoModelFor…` class with its own head, into which PEFT puts its delta. So adapters of any method and heads of any
width live beside each other without knowing of one another; PEFT alone holds them only if they are alike.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import transformers
from peft import PeftConfig, PeftModel

from peftlab.base import BaseFiles, find_base, load_backbone, load_tokenizer, tokenizer_hash
from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.errors import AdapterNotFoundError, BaseNotFoundError, IntegrityError, Problems, suggest
from peftlab.recipe import BaseSection, Quantization, refusal
from peftlab.runtime.attaching import attach
from peftlab.runtime.routing import Router, Unroutable, head_output, part_of, runs
from peftlab.store import Adapter, Store
from peftlab.tasks import Feature, Prediction, Task, task_from_manifest
from peftlab.tasks.predicting import forward, predict_examples, predict_features
from peftlab.tasks.tokenizing import Told, encode_examples

Asked = str | Mapping[str, Any] | Row
"""A text, or the columns that a task asks for."""
QUANTIZATIONS = ("none", *get_args(Quantization))
FP32 = "fp32"


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
    adapted: PeftModel

    @property
    def model(self) -> transformers.PreTrainedModel:
        """What computes logits."""
        return self.adapted.get_base_model()


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
        self._loaded[name] = loaded = _Loaded(adapter, task, self._attached(adapter, task, self._backbone))
        with suppress(Unroutable):  # its rows have passes of their own
            inside = f"{loaded.model.base_model_prefix}."
            saved = PeftConfig.from_pretrained(adapter.folder).modules_to_save or ()
            self._router.add(name, loaded.model.base_model, {part.removeprefix(inside) for part in saved})
        if _tuned_on(adapter) != self.quantization:
            self.notes.append(
                f"{adapter} was tuned on its base in {_tuned_on(adapter) or FP32} and runs on it in "
                f"{self.quantization or FP32}: the scores in its manifest do not hold here."
            )

    @property
    def tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        """Of the base."""
        return self._tokenizer

    def model(self, name: str) -> transformers.PreTrainedModel:
        """What computes a loaded adapter's logits: the base with its delta and head, in Transformers' own class."""
        return self._loaded[name].model

    def whole_copy(self, name: str) -> PeftModel:
        """A loaded adapter on a base of its own in fp32: a quantized one's with the weights that it is rounded to."""
        loaded = self._loaded[name]
        if self.quantization is None:
            return copy.deepcopy(loaded.adapted)
        rounded = self._load_backbone().dequantize(torch.float32)
        return self._attached(loaded.adapter, loaded.task, rounded)

    def _attached(self, adapter: Adapter, task: Task, backbone: transformers.PreTrainedModel) -> PeftModel:
        dora = getattr(PeftConfig.from_pretrained(adapter.folder), "use_dora", False)
        if reason := refusal("dora" if dora else adapter.manifest["method"], self.quantization):
            raise IntegrityError(f"{adapter} cannot be put beside this base: {reason}")
        return attach(adapter, task, backbone, self._files, trust_remote_code=self.trust_remote_code)

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
        groups = {name: [i for i, other in enumerate(names) if other == name] for name in names}
        encoded = {name: self._encode(name, [examples[i] for i in chosen]) for name, chosen in groups.items()}
        outputs = iter(self._logits([(n, f) for n, rows in encoded.items() for windows in rows for f in windows]))
        answers: dict[int, Answer] = {}
        for name, chosen in groups.items():
            mine = [examples[i] for i in chosen]
            taken = predict_features(self.task(name), mine, encoded[name], lambda f: [next(outputs) for _ in f])
            answers |= {i: Answer(name, prediction) for i, prediction in zip(chosen, taken, strict=True)}
        return [answers[i] for i in range(len(asked))]

    def _encode(self, name: str, examples: Sequence[Any]) -> list[list[Feature]]:
        loaded = self._loaded[name]
        length = loaded.adapter.manifest["max_length"]
        return encode_examples(loaded.task, self._tokenizer, examples, max_length=length, training=False)

    @torch.inference_mode()
    def _logits(self, asked: Sequence[tuple[str, Feature]], batch_size: int = 32) -> list[torch.Tensor]:
        """The logits of each feature by its adapter, in order: all that can be routed share forward passes."""
        logits: dict[int, torch.Tensor] = {}
        routed = [i for i, (name, _) in enumerate(asked) if name in self._router.names]
        together = routed if len({asked[i][0] for i in routed}) > 1 else []
        together.sort(key=lambda i: len(asked[i][1]))
        for start in range(0, len(together), batch_size):
            chosen = sorted(together[start : start + batch_size], key=lambda i: asked[i][0])
            logits |= zip(chosen, self._mixed([asked[i] for i in chosen]), strict=True)
        for name in dict.fromkeys(name for i, (name, _) in enumerate(asked) if i not in logits):
            alone = [i for i, (other, _) in enumerate(asked) if other == name]
            task, model = self.task(name), self.model(name)
            logits |= zip(alone, forward(task, model, self._tokenizer, [asked[i][1] for i in alone]), strict=True)
        return [logits[i] for i in range(len(asked))]

    def _mixed(self, asked: Sequence[tuple[str, Feature]]) -> Iterator[torch.Tensor]:
        """The logits of each feature, from one forward pass of the base; those of an adapter stand together."""
        padded = self._tokenizer.pad([feature.inputs for _, feature in asked], return_tensors="pt")
        inputs = {name: tensor.to(self._backbone.device) for name, tensor in padded.items()}
        names = [name for name, _ in asked]
        states = self._router.states(names, inputs)
        for name, part in runs(names):
            task, model, mine = self.task(name), self.model(name), {k: v[part] for k, v in inputs.items()}
            output = head_output(model, part_of(states, part), mine)
            for row, mask in zip(task.logits(output).float().cpu(), padded["attention_mask"][part], strict=True):
                yield row[mask.bool()] if task.per_token else row

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
        self._backbone = self._load_backbone()
        self._router = Router(self._backbone)

    def _load_backbone(self) -> transformers.PreTrainedModel:
        trusted = self.trust_remote_code
        return load_backbone(self._files, trust_remote_code=trusted, quantization=self.quantization, device=self.device)

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

"""Load the frozen base: whole or quantized, under a head for a task or without any."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from peftlab.base.device import choose_device
from peftlab.base.heads import head_config, own_head, whole_head, whole_modules
from peftlab.base.lookup import BaseFiles, find_base
from peftlab.base.quantization import bytes_of, keep_unpacked, quantized_loading, weights_in
from peftlab.base.tokenizer import load_tokenizer, max_input_length, tokenizer_hash
from peftlab.errors import ErrorCollector
from peftlab.recipe import BaseSection, Quantization

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from peftlab.tasks import Task


BEYOND_FP16 = ("t5", "mt5", "umt5", "longt5")
"""Kinds of models whose activations leave the range of fp16 (huggingface/transformers#4586)."""


@dataclass
class Base:
    """A base in memory, with its tokenizer and, on top of it, a fresh head for one task.

    `head_modules` names every module whose parameters the checkpoint does not hold, and what else their head has: they
    must be trained and saved with the adapter. `parameters` counts those of the base without them, and `bytes` is the
    memory these take, in fp32 or quantized; `max_length` is the longest input in tokens.
    """

    files: BaseFiles
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    head_modules: list[str]
    parameters: int
    bytes: int
    quantization: Quantization | None
    max_length: int
    fingerprint: str

    @property
    def bytes_in_fp32(self) -> int:
        """The memory its weights take unquantized."""
        return 4 * self.parameters

    @cached_property
    def tokenizer_hash(self) -> str:
        """See `tokenizer_hash`."""
        return tokenizer_hash(self.tokenizer)


def load_base(section: BaseSection, task: "Task", *, seed: int, device: str = "auto", dropout: bool = True) -> Base:
    """Load the base, quantized if `section` says so, with a fresh head for `task`, seeded.

    Without `dropout` it has none while training.

    Raises:
        BaseNotFoundError: no such base.
        IntegrityError: its files are not what they should be.
        RecipeError: the task writes with the base's own head, and it has none.
        DeviceNotFoundError: there is no such device, or it cannot compute with a quantized base.
    """
    from transformers import set_seed

    files = find_base(section)
    _check_class(section, files, task)
    set_seed(seed)
    settings = {} if dropout else _no_dropout(files)
    if section.attn_implementation:
        settings["attn_implementation"] = section.attn_implementation
    trusted, quantization = section.trust_remote_code, section.quantization
    place: dict[str, Any] = {"quantization": quantization, "device": device}
    model, new = load_with_head(files, task, trust_remote_code=trusted, **place, **settings)
    if new and not task.head_labels:
        _refuse_headless(section, task, new)
    head = whole_head(model, new)
    model.config.use_cache = False  # keys and values are for writing; while training they only take memory
    tokenizer = load_tokenizer(files, trust_remote_code=trusted, whole_text=task.whole_text)
    return Base(
        files=files,
        model=model,
        tokenizer=tokenizer,
        head_modules=whole_modules(model, head),
        parameters=sum(weights_in(tensor) for name, tensor in model.named_parameters() if name not in head),
        bytes=bytes_of(model, without=head),
        quantization=quantization,
        max_length=max_input_length(tokenizer, model),
        fingerprint=files.fingerprint,
    )


def _check_class(section: BaseSection, files: BaseFiles, task: "Task") -> None:
    """Refuse a base whose architecture Transformers has no class of for the task; its own code may bring one."""
    import transformers

    kind = files.config.get("model_type", "unknown")
    names = getattr(transformers, task.auto_class)._model_mapping._model_mapping  # its keys() import every architecture
    if section.trust_remote_code or kind in names:
        return
    with ErrorCollector() as errors:
        hint = f"Take one that Transformers loads as {task.auto_class}."
        message = f"{task.type} has no form for '{section.model}', a model of type {kind}."
        errors.add(message, key="base.model", hint=hint)


def _refuse_headless(section: BaseSection, task: "Task", new: set[str]) -> None:
    with ErrorCollector() as errors:
        message = f"'{section.model}' has no head for {task.type}: its weights lack {', '.join(sorted(new)[:3])}."
        hint = f"Take one that was saved with it, by a class of {task.auto_class}: mostly the model this was made of."
        errors.add(message, key="base.model", hint=hint)


def load_with_head(
    files: BaseFiles,
    task: "Task",
    *,
    trust_remote_code: bool = False,
    quantization: Quantization | None = None,
    device: str = "cpu",
    **settings: Any,
) -> tuple["PreTrainedModel", set[str]]:
    """The base, in fp32 or quantized, under a fresh head for `task`, and the names of the parameters that are new.

    `settings` change the model's configuration.

    Raises:
        DeviceNotFoundError: there is no such device, or it cannot compute with a quantized base.
    """
    return _loaded(
        task.auto_class,
        files,
        quantization,
        device,
        **head_config(task),
        **settings,
        **_load_options(trust_remote_code),
    )


def blank_with_head(files: BaseFiles, task: "Task", *, trust_remote_code: bool = False) -> "PreTrainedModel":
    """The same class of model without any weight."""
    import torch
    import transformers

    trusted = {"trust_remote_code": trust_remote_code}
    with torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(files.folder, **trusted, **head_config(task))
        model: PreTrainedModel = getattr(transformers, task.auto_class).from_config(config, **trusted)
    return model


def tensors_named(files: BaseFiles, names: Collection[str]) -> "dict[str, torch.Tensor]":
    """Those of the checkpoint's tensors that have these names."""
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    for file in sorted(files.folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            found |= {name: weights.get_tensor(name) for name in weights.keys() if name in names}  # noqa: SIM118
    return found


def load_backbone(
    files: BaseFiles,
    *,
    trust_remote_code: bool = False,
    quantization: Quantization | None = None,
    device: str = "auto",
) -> "PreTrainedModel":
    """The base without any head, in fp32 or quantized: what stays resident while adapters come and go.

    Raises:
        DeviceNotFoundError: there is no such device, or it cannot compute with a quantized base.
    """
    model, _ = _loaded("AutoModel", files, quantization, device, **_load_options(trust_remote_code))
    return model.eval()


def _loaded(
    auto_class: str, files: BaseFiles, quantization: Quantization | None, device: str, **options: Any
) -> tuple["PreTrainedModel", set[str]]:
    """The model on its device, and the names of the parameters that the checkpoint lacks."""
    import transformers

    place = choose_device(device)
    load = partial(getattr(transformers, auto_class).from_pretrained, files.folder, output_loading_info=True, **options)
    with quietly():
        if quantization is None:
            model, report = load()
            return model.to(place), set(report["missing_keys"])
        # what is new has to stay whole, so it must be known first: a pass in which no weight is read tells
        blank, report = load(device_map={"": "meta"})
        new = set(report["missing_keys"])
        whole = {name.rpartition(".")[0] for name in whole_head(blank, new)} | set(own_head(blank))
        model, _ = load(**quantized_loading(quantization, whole, place))
    keep_unpacked(model)
    return model, new


def _load_options(trust_remote_code: bool) -> dict[str, Any]:
    import torch

    return {"use_safetensors": True, "dtype": torch.float32, "trust_remote_code": trust_remote_code}


def _no_dropout(files: BaseFiles) -> dict[str, Any]:
    """Every probability of dropout in the configuration, under any of its names, set to 0."""
    return {key: 0.0 for key, value in files.config.items() if "drop" in key and isinstance(value, float)}


@contextmanager
def quietly() -> Iterator[None]:
    """Transformers reports the new head as a fault and draws a bar for a second's work: both would only puzzle."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()

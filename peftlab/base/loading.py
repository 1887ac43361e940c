"""Load the frozen base in fp32 or quantized, with or without a head for a task."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from peftlab.base.checkpoint_head import LoadReport, head_note, require_checkpoint_head
from peftlab.base.device import choose_device
from peftlab.base.heads import (
    find_modules_to_save,
    find_output_layer,
    head_config,
    head_parameters,
    initialize_bias,
    initialize_parameters,
    lm_head_modules,
    parameters_outside_backbone,
)
from peftlab.base.lookup import BaseFiles, find_base
from peftlab.base.pooled_model import pooled_class
from peftlab.base.pooling import choose_pooling
from peftlab.base.quantization import disable_avx512_packing, memory_footprint, num_weights, quantization_kwargs
from peftlab.errors import ErrorCollector, reraise_as_recipe_error
from peftlab.imports import safetensors, torch, transformers
from peftlab.recipe import BaseSection, Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from peftlab.tasks import Task
    from peftlab.tasks.inputs.inputs import Inputs

FP16_OVERFLOW_MODEL_TYPES = ("t5", "mt5", "umt5", "longt5")
"""Model types whose activations overflow in fp16 (huggingface/transformers#4586)."""


@dataclass
class Base:
    """A base in memory, with its inputs and a head for one task: a new one, or the checkpoint's if the recipe says so.

    `head_modules` names the modules that are trained and saved with the adapter: those outside the backbone, and those
    that the checkpoint lacks. `num_parameters` and `num_bytes` (memory, in fp32 or quantized) count the base without
    these. `max_length` is the longest input in tokens. `pooling` says what the head reads, and why; it is empty for
    tasks without one output per input. `head_note` says what became of a head that the checkpoint has for this task's
    model class.
    """

    files: BaseFiles
    model: "PreTrainedModel"
    inputs: "Inputs"
    head_modules: list[str]
    num_parameters: int
    num_bytes: int
    quantization: Quantization | None
    max_length: int
    fingerprint: str
    pooling: str = ""
    head_note: str = ""

    @property
    def num_bytes_fp32(self) -> int:
        """The memory that the base's weights take without quantization."""
        return 4 * self.num_parameters

    @property
    def output_layer(self) -> str | None:
        """The name of the Linear that gives the logits, the last one of the head; None without a new head."""
        return find_output_layer(self.model, self.head_modules)

    @cached_property
    def inputs_fingerprint(self) -> str:
        """See `Inputs.fingerprint`."""
        return self.inputs.fingerprint


def load_base(section: BaseSection, task: "Task", *, seed: int, device: str = "auto", dropout: bool = True) -> Base:
    """Load the base, quantized if `section` says so, with a new head for `task` that `seed` initializes.

    Sets `task.state["pooling"]`, see `choose_pooling`. Without `dropout`, all dropout probabilities in the base's
    configuration are 0.

    Raises:
        BaseNotFoundError: no such base was found.
        IntegrityError: its files differ from the known ones, or are not safetensors.
        RecipeError: the base's architecture does not support the task or the pooling, or the base lacks the head that
            the task needs.
        DeviceNotFoundError: there is no such device, or it cannot compute with a quantized base.
    """
    files = find_base(section)
    _check_architecture(section, files, task)
    pooling = choose_pooling(section, files, task)
    transformers.set_seed(seed)
    config = {} if dropout else _zero_dropout(files)
    if section.attn_implementation:
        config["attn_implementation"] = section.attn_implementation
    trusted, quantization = section.trust_remote_code, section.quantization
    placement: dict[str, Any] = {"quantization": quantization, "device": device}
    keep_head = section.head == "checkpoint"
    with _attention_errors(section):
        model, report = _load_model(files, task, keep_head=keep_head, trust_remote_code=trusted, **placement, **config)
    if keep_head:
        require_checkpoint_head(section, files, task, report)
    if report.new and not task.head.labels:
        _raise_missing_lm_head(section, task, report.new)
    head = head_parameters(model, report.new, is_trained=bool(task.head.labels))
    initialize_bias(model, report.new, task.head.initial_bias)
    model.config.use_cache = False  # training needs no cached keys and values
    inputs = task.inputs_class.load(files, trust_remote_code=trusted)
    inputs.configure_model(model)
    _check_processor(section, inputs, model)
    return Base(
        files=files,
        model=model,
        inputs=inputs,
        head_modules=find_modules_to_save(model, head),
        head_note=head_note(files, report, keep_head=keep_head),
        num_parameters=sum(num_weights(tensor) for name, tensor in model.named_parameters() if name not in head),
        num_bytes=memory_footprint(model, exclude=head),
        quantization=quantization,
        max_length=inputs.max_length(model),
        fingerprint=files.fingerprint,
        pooling=pooling,
    )


def _check_architecture(section: BaseSection, files: BaseFiles, task: "Task") -> None:
    """Check that Transformers has a model class for the base's architecture and the task.

    A base with remote code is not checked, because it may bring its own class.

    Raises:
        RecipeError: there is no such class.
    """
    model_type = files.config.get("model_type", "unknown")
    # `in` on the public mapping would import every architecture; the private one holds plain names
    supported = getattr(transformers, task.head.auto_class)._model_mapping._model_mapping
    if section.trust_remote_code or model_type in supported:
        return
    with ErrorCollector() as errors:
        message = f"'{section.model}' is a '{model_type}' model, which does not support {task.type}."
        hint = f"Take one that Transformers loads as {task.head.auto_class}."
        errors.add(message, key="base.model", hint=hint)


@contextmanager
def _attention_errors(section: BaseSection) -> Iterator[None]:
    """Raise RecipeError if the base cannot be loaded with the attention that the recipe names, which it may lack."""
    errors = (ValueError, ImportError) if section.attn_implementation else ()
    message = f"'{section.model}' cannot be loaded with '{section.attn_implementation}'"
    with reraise_as_recipe_error(message, *errors, key="base.attn_implementation"):
        yield


def _check_processor(section: BaseSection, inputs: "Inputs", model: "PreTrainedModel") -> None:
    """Check that the processor belongs to the model.

    Raises:
        RecipeError: it does not.
    """
    with ErrorCollector() as errors:
        if conflict := inputs.conflict(model):
            message = f"the files of '{section.model}' do not belong together: {conflict}"
            errors.add(
                message, key="base.model", hint=f"Take the {inputs.processor_name} that these weights came with."
            )


def _raise_missing_lm_head(section: BaseSection, task: "Task", new: set[str]) -> None:
    with ErrorCollector() as errors:
        missing = ", ".join(sorted(new)[:3])
        message = f"'{section.model}' has no head for {task.type}: its checkpoint lacks {missing}."
        hint = f"Take a checkpoint saved from {task.head.auto_class}, usually the model that this one was made from."
        errors.add(message, key="base.model", hint=hint)


def load_with_head(
    files: BaseFiles,
    task: "Task",
    *,
    keep_head: bool = False,
    trust_remote_code: bool = False,
    quantization: Quantization | None = None,
    device: str = "cpu",
    **config: Any,
) -> tuple["PreTrainedModel", set[str]]:
    """Load the base, in fp32 or quantized, with a head for `task`, and name the newly initialized parameters.

    `config` overrides fields of the model's configuration. A head that the checkpoint has for the task's model class is
    replaced by a new one; with `keep_head` it is kept as far as its sizes fit.

    Raises:
        DeviceNotFoundError: there is no such device, or it cannot compute with a quantized base.
        IntegrityError: tensors of the backbone have other shapes than its configuration says.
    """
    placement: dict[str, Any] = {"quantization": quantization, "device": device}
    model, report = _load_model(
        files, task, keep_head=keep_head, trust_remote_code=trust_remote_code, **placement, **config
    )
    return model, report.new


def _load_model(
    files: BaseFiles,
    task: "Task",
    *,
    keep_head: bool,
    trust_remote_code: bool,
    quantization: Quantization | None,
    device: str,
    **config: Any,
) -> tuple["PreTrainedModel", LoadReport]:
    """The model of `load_with_head`, and what the checkpoint has of it."""
    is_trained = bool(task.head.labels)
    options = {**head_config(task), **config, **_loading_options(trust_remote_code)}
    options["ignore_mismatched_sizes"] = is_trained
    loader = model_class(files.folder, task)
    model, report = _from_pretrained(loader, files, quantization, device, is_trained=is_trained, **options)
    if is_trained:
        report = report.with_head(parameters_outside_backbone(model), files)
        if report.checkpoint_head and not keep_head:
            initialize_parameters(model, report.outside)
            report = replace(report, new=report.new | report.outside)
    return model, report


def init_empty_model(files: BaseFiles, task: "Task", *, trust_remote_code: bool = False) -> "PreTrainedModel":
    """Build the model class of `load_with_head` on the meta device, without weights."""
    trusted = {"trust_remote_code": trust_remote_code}
    with torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(files.folder, **trusted, **head_config(task))
        if task.head.pooling:
            pooled: PreTrainedModel = pooled_class(cast(Any, type(config)), task.head.pooling)._from_config(config)
            return pooled
        model: PreTrainedModel = getattr(transformers, task.head.auto_class).from_config(config, **trusted)
    return model


def model_class(folder: Path, task: "Task") -> Any:
    """What `from_pretrained` is called on: an auto class of Transformers, or the pooled class of an architecture."""
    if not task.head.pooling:
        return getattr(transformers, task.head.auto_class)
    config_class: Any = type(transformers.AutoConfig.from_pretrained(folder))
    return pooled_class(config_class, task.head.pooling)


def load_tensors(files: BaseFiles, names: Collection[str]) -> "dict[str, torch.Tensor]":
    """The checkpoint's tensors with these names; unknown names are ignored."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(files.folder.glob("*.safetensors")):
        with safetensors.safe_open(file, framework="pt") as weights:
            tensors |= {name: weights.get_tensor(name) for name in weights.keys() if name in names}  # noqa: SIM118
    return tensors


def load_backbone(
    files: BaseFiles,
    *,
    trust_remote_code: bool = False,
    quantization: Quantization | None = None,
    device: str = "auto",
) -> "PreTrainedModel":
    """Load the base without a head, in fp32 or quantized, in eval mode: adapters and their heads share it.

    Raises:
        DeviceNotFoundError: there is no such device, or it cannot compute with a quantized base.
    """
    options = _loading_options(trust_remote_code)
    model, _ = _from_pretrained(transformers.AutoModel, files, quantization, device, is_trained=False, **options)
    return model.eval()


def _from_pretrained(
    model_class: Any,
    files: BaseFiles,
    quantization: Quantization | None,
    device: str,
    *,
    is_trained: bool,
    **options: Any,
) -> tuple["PreTrainedModel", LoadReport]:
    """The model on its device, and what the checkpoint has of it; `is_trained` is said of its head."""
    placement = choose_device(device)
    load = partial(model_class.from_pretrained, files.folder, output_loading_info=True, **options)
    with suppress_transformers_output():
        if quantization is None:
            model, loading_info = load()
            return model.to(placement), LoadReport.from_transformers(loading_info)
        # new parameters must not be quantized: first load on the meta device, without weights, to find their names
        empty_model, loading_info = load(device_map={"": "meta"})
        report = LoadReport.from_transformers(loading_info)
        parameters = head_parameters(empty_model, report.new, is_trained=is_trained)
        head = {name.rpartition(".")[0] for name in parameters}
        model, _ = load(**quantization_kwargs(quantization, head | set(lm_head_modules(empty_model)), placement))
    disable_avx512_packing(model)
    return model, report


def _loading_options(trust_remote_code: bool) -> dict[str, Any]:
    return {"use_safetensors": True, "dtype": torch.float32, "trust_remote_code": trust_remote_code}


def _zero_dropout(files: BaseFiles) -> dict[str, Any]:
    """Every dropout probability of the configuration, whatever its name, set to 0."""
    return {key: 0.0 for key, value in files.config.items() if "drop" in key and isinstance(value, float)}


@contextmanager
def suppress_transformers_output() -> Iterator[None]:
    """Hide Transformers' load report and progress bar: the report warns of the new head, which is expected."""
    logging = transformers.utils.logging
    verbosity, progress_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if progress_bar:
            logging.enable_progress_bar()

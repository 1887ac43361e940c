"""Attach a published adapter to a base: all tensors of its files are placed in the model, or none.

PEFT determines which tensors an adapter of a configuration has, and loads them. PEFT itself would ignore missing or
extra tensors, for example of an adapter with another depth or task; here they are an error.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
import transformers
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import TrainableTokensWrapper

from peftlab.base import BaseFiles, init_empty_model, load_tensors, load_with_head
from peftlab.errors import IntegrityError
from peftlab.methods import METHODS
from peftlab.runtime.adapter_files import AdapterFiles
from peftlab.runtime.backbones import path_of_backbone, set_backbone
from peftlab.runtime.module_clone import clone_modules
from peftlab.store import CONFIG_FILE, PEFT_PREFIX
from peftlab.tasks import Task

QUANTIZATION_FLAGS = ("is_loaded_in_8bit", "is_loaded_in_4bit")
"""Attributes of a model that PEFT reads to wrap its layers."""
INTERNAL_NAME = "served"
"""The adapter's name inside its PEFT layers, which never contains the user's text."""


@dataclass(frozen=True)
class AttachedAdapter:
    """A model with an adapter.

    Attributes:
        peft_model: The PEFT model; it has the adapter's head.
        full_modules: Names of modules that the adapter replaces as a whole.
        parameter_names: Each tensor's name in the adapter's file → in the model; None if PEFT converted some
            tensors.
    """

    peft_model: PeftModel
    full_modules: frozenset[str]
    parameter_names: dict[str, str] | None

    @property
    def model(self) -> transformers.PreTrainedModel:
        """The Transformers model inside, which computes logits."""
        return self.peft_model.get_base_model()


def attach_adapter(
    files: AdapterFiles,
    backbone: transformers.PreTrainedModel,
    base_files: BaseFiles,
    *,
    trust_remote_code: bool = False,
) -> AttachedAdapter:
    """Build the task's model on the weights of `backbone`, with the adapter's head and delta.

    Raises:
        IntegrityError: such a model has other tensors than the adapter, or PEFT does not know its method.
    """
    adapter, tensors = files.adapter, files.tensors
    METHODS.get(adapter.manifest.method)  # importing the package of a method registers its type with PEFT
    if (method := files.config.get("peft_type")) not in PEFT_TYPE_TO_TUNER_MAPPING:
        raise IntegrityError(
            f"{adapter}: {CONFIG_FILE} names a method that PEFT does not know: peft_type is {method!r}."
        )
    config = PeftConfig.from_pretrained(adapter.folder)
    full_modules = frozenset(config.modules_to_save or ())
    model = _build_model(files.task, backbone, base_files, trust_remote_code)
    full_tensors = _select_full_tensors(model, full_modules, new_head=bool(files.task.head.labels))
    try:
        peft_model = PeftModel(model, _target_exact_layers(config, tensors), INTERNAL_NAME)
    except (TypeError, ValueError) as error:  # the type or size of a layer does not fit
        raise IntegrityError(f"{adapter} does not fit its base: {error}") from error
    delta = get_peft_model_state_dict(peft_model, adapter_name=INTERNAL_NAME, save_embedding_layers=False)
    if errors := list(_find_mismatches(tensors, {**delta, **full_tensors})):
        raise IntegrityError("\n".join([f"{adapter} does not fit its base:", *sorted(errors)]))
    state = _to_state_dict(peft_model, config, tensors)
    if unexpected := peft_model.load_state_dict(state, strict=False, assign=True).unexpected_keys:
        raise IntegrityError(f"{adapter} does not fit its base, which has no {', '.join(unexpected)}.")
    peft_model = peft_model.requires_grad_(False).to(backbone.device).eval()
    if backbone.dtype in (torch.bfloat16, torch.float16):
        model.base_model.to(backbone.dtype)
    return AttachedAdapter(peft_model, full_modules, _match_names(tensors, state))


def _to_state_dict(
    peft_model: PeftModel, config: PeftConfig, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Rename an adapter's tensors from their names in its file to those in the model."""
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    state = tuner._remap_adapter_state_dict_for_load(peft_model, config, INTERNAL_NAME, dict(tensors))
    names = {
        f"{name}.{saved}": f"{name}.{loaded}"
        for name, module in peft_model.named_modules()
        if isinstance(module, TrainableTokensWrapper)  # not part of the tuner, with names of its own
        for saved, loaded in module.adapter_state_dict_load_map(INTERNAL_NAME).items()
    }
    return {names.get(name, name): tensor for name, tensor in state.items()}


def _match_names(tensors: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> dict[str, str] | None:
    """Map each tensor's name in its file to its name in the model; None if PEFT converts some."""
    names = {id(tensor): name.removeprefix(PEFT_PREFIX) for name, tensor in state.items()}
    matches = {name: names[id(tensor)] for name, tensor in tensors.items() if id(tensor) in names}
    return matches if len(matches) == len(tensors) == len(state) else None


def _build_model(
    task: Task, backbone: transformers.PreTrainedModel, base_files: BaseFiles, trust_remote_code: bool
) -> transformers.PreTrainedModel:
    """Build the task's model class on the backbone's weights; a new head has no weights yet."""
    model = init_empty_model(base_files, task, trust_remote_code=trust_remote_code)
    for flag in QUANTIZATION_FLAGS:
        setattr(model, flag, getattr(backbone, flag, False))
    set_backbone(model, clone_modules(backbone))
    if not task.head.labels:
        _load_base_head(model, backbone, base_files, task, trust_remote_code)
    return model


def _load_base_head(
    model: transformers.PreTrainedModel,
    backbone: transformers.PreTrainedModel,
    base_files: BaseFiles,
    task: Task,
    trust_remote_code: bool,
) -> None:
    """Load the base's own head from its checkpoint or tie it to the embeddings; load its generation settings.

    Raises:
        IntegrityError: the checkpoint has no head.
    """
    path = path_of_backbone(model)
    tied: Iterable[str] = getattr(model, "all_tied_weights_keys", {})
    head_names = model.state_dict().keys() - {f"{path}{name}" for name in backbone.state_dict()} - set(tied)
    found = load_tensors(base_files, head_names)
    if head_names - found.keys():  # old checkpoints have other names, such as LayerNorm.gamma; Transformers maps them
        full_model, new = load_with_head(base_files, task, trust_remote_code=trust_remote_code)
        found = {name: tensor for name, tensor in full_model.state_dict().items() if name in head_names - new}
    if missing := head_names - found.keys():
        raise IntegrityError(
            f"base '{base_files.model}' has no head: its checkpoint lacks {', '.join(sorted(missing))}."
        )
    state = {name: tensor.to(backbone.device, backbone.dtype) for name, tensor in found.items()}
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    with suppress(OSError):  # some bases have none
        model.generation_config = transformers.GenerationConfig.from_pretrained(base_files.folder)


def _target_exact_layers(config: PeftConfig, tensors: Iterable[str]) -> PeftConfig:
    """Set `target_modules` of an adapter's configuration to exactly the layers it adapts; its head is loaded by us.

    The saved `target_modules` may match more here: the shared backbone has layers, such as BERT's pooler, that the
    task's model class leaves out.
    """
    marker = f".{PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type]}"  # `….query.lora_A.weight` adapts `….query`
    layers = {name.removeprefix(PEFT_PREFIX).rpartition(marker)[0] for name in tensors if marker in name}
    config.target_modules, config.modules_to_save = layers or DUMMY_TARGET_MODULES, None
    return config


def _select_full_tensors(
    model: transformers.PreTrainedModel, full_modules: Iterable[str], *, new_head: bool
) -> dict[str, torch.Tensor]:
    """The tensors of `full_modules`, and of a new head, by their names in an adapter's file."""
    path = path_of_backbone(model)
    prefixes = tuple(f"{name}." for name in full_modules if name.startswith(path))
    return {
        f"{PEFT_PREFIX}{name}": tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(prefixes) or (new_head and not name.startswith(path))
    }


def _find_mismatches(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Describe each tensor that is missing from the adapter's file, unexpected in it, or of another shape.

    PEFT would load an adapter of another depth or task without a warning.
    """
    for name in expected.keys() | tensors.keys():
        short_name = name.removeprefix(PEFT_PREFIX)
        if name not in tensors:
            yield f"  {short_name}: missing"
        elif name not in expected:
            yield f"  {short_name}: not in this model"
        elif tensors[name].shape != expected[name].shape:
            yield f"  {short_name}: {tuple(tensors[name].shape)} where the model has {tuple(expected[name].shape)}"

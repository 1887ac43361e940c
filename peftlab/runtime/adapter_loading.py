"""A published adapter → a model of its own on a base's weights: every tensor of its files in its place, or none.

PEFT says which tensors an adapter of a configuration has, and puts them in; what it would load without a word (another
depth, another task, too much or too little) is refused.
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
from peftlab.runtime.backbones import path_of_backbone, put_backbone
from peftlab.runtime.module_clone import clone_modules
from peftlab.store import CONFIG_FILE, PEFT_PREFIX
from peftlab.tasks import Task

PEFT_ASKS = ("is_loaded_in_8bit", "is_loaded_in_4bit")  # a model, to tell how to wrap its layers
KEY = "served"  # an adapter's name inside its own layers: our word, never the user's text


@dataclass(frozen=True)
class Attached:
    """An adapter's model.

    `held` names the modules that it has as a whole. `places` tells for each tensor of its file which one of the model
    it became; None if some became others.
    """

    adapted: PeftModel
    held: frozenset[str]
    places: dict[str, str] | None

    @property
    def model(self) -> transformers.PreTrainedModel:
        """What computes logits, in the architecture's own class."""
        return self.adapted.get_base_model()


def attach(
    read: AdapterFiles,
    backbone: transformers.PreTrainedModel,
    files: BaseFiles,
    *,
    trust_remote_code: bool = False,
) -> Attached:
    """The task's own model class on the weights of `backbone`, read from `files`, with the adapter's head and delta.

    Raises:
        IntegrityError: the adapter's tensors are not those that such a model has, or PEFT does not know its method.
    """
    adapter, tensors = read.adapter, read.tensors
    METHODS.get(adapter.manifest.method)  # importing the package that brings a method makes PEFT know its type
    if (method := read.config.get("peft_type")) not in PEFT_TYPE_TO_TUNER_MAPPING:
        raise IntegrityError(
            f"{adapter}: {CONFIG_FILE} is of a method that PEFT does not know: peft_type is {method!r}."
        )
    delta = PeftConfig.from_pretrained(adapter.folder)
    held = frozenset(delta.modules_to_save or ())
    model = _shell(read.task, backbone, files, trust_remote_code)
    head = _held_whole(model, held, new_head=bool(read.task.head_labels))
    try:
        adapted = PeftModel(model, _aimed(delta, tensors), KEY)
    except (TypeError, ValueError) as fault:  # of a layer's kind or size
        raise IntegrityError(f"{adapter} does not fit its base: {fault}") from fault
    wanted = {**get_peft_model_state_dict(adapted, adapter_name=KEY, save_embedding_layers=False), **head}
    if faults := list(_misfits(tensors, wanted)):
        raise IntegrityError("\n".join([f"{adapter} does not fit its base:", *sorted(faults)]))
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[delta.peft_type]
    placed = _with_token_rows(adapted, tuner._remap_adapter_state_dict_for_load(adapted, delta, KEY, dict(tensors)))
    if nowhere := adapted.load_state_dict(placed, strict=False, assign=True).unexpected_keys:
        raise IntegrityError(f"{adapter} does not fit its base: there is no place for {', '.join(nowhere)}.")
    adapted = adapted.requires_grad_(False).to(backbone.device).eval()
    if backbone.dtype in (torch.bfloat16, torch.float16):
        model.base_model.to(backbone.dtype)
    return Attached(adapted, held, _places(tensors, placed))


def _with_token_rows(adapted: PeftModel, placed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rows of trained tokens are in modules that are not of the method, and have names of their own."""
    wrappers = {name: module for name, module in adapted.named_modules() if isinstance(module, TrainableTokensWrapper)}
    names = {
        f"{name}.{saved}": f"{name}.{place}"
        for name, wrapper in wrappers.items()
        for saved, place in wrapper.adapter_state_dict_load_map(KEY).items()
    }
    return {names.get(name, name): tensor for name, tensor in placed.items()}


def _places(tensors: Mapping[str, torch.Tensor], placed: Mapping[str, torch.Tensor]) -> dict[str, str] | None:
    """Each tensor's name in its file → in the model, unless PEFT makes others of them."""
    names = {id(tensor): name.removeprefix(PEFT_PREFIX) for name, tensor in placed.items()}
    found = {name: names.get(id(tensor)) for name, tensor in tensors.items()}
    whole = {name: place for name, place in found.items() if place is not None}
    return whole if len(whole) == len(tensors) == len(placed) else None


def _shell(
    task: Task, backbone: transformers.PreTrainedModel, files: BaseFiles, trust_remote_code: bool
) -> transformers.PreTrainedModel:
    """The task's own model class on the backbone's weights, its head without any yet."""
    model = init_empty_model(files, task, trust_remote_code=trust_remote_code)
    for flag in PEFT_ASKS:
        setattr(model, flag, getattr(backbone, flag, False))
    put_backbone(model, clone_modules(backbone))
    if not task.head_labels:
        _add_own_head(model, backbone, files, task, trust_remote_code)
    return model


def _add_own_head(
    model: transformers.PreTrainedModel,
    backbone: transformers.PreTrainedModel,
    files: BaseFiles,
    task: Task,
    trust_remote_code: bool,
) -> None:
    """The base's own head, from its checkpoint, or tied to its embeddings; and how the base ends texts.

    Raises:
        IntegrityError: the checkpoint has none.
    """
    path = path_of_backbone(model)
    wanted = model.state_dict().keys() - {f"{path}{name}" for name in backbone.state_dict()} - set(_tied(model))
    found = load_tensors(files, wanted)
    if wanted - found.keys():  # of other names, such as LayerNorm.gamma of old, which Transformers knows to read
        whole, new = load_with_head(files, task, trust_remote_code=trust_remote_code)
        found = {name: tensor for name, tensor in whole.state_dict().items() if name in wanted - new}
    if absent := wanted - found.keys():
        raise IntegrityError(f"base '{files.model}' has no head of its own: {', '.join(sorted(absent))} is not in it.")
    placed = {name: tensor.to(backbone.device, backbone.dtype) for name, tensor in found.items()}
    model.load_state_dict(placed, strict=False, assign=True)
    model.tie_weights()
    with suppress(OSError):  # not every base comes with one
        model.generation_config = transformers.GenerationConfig.from_pretrained(files.folder)


def _tied(model: transformers.PreTrainedModel) -> Iterable[str]:
    """Names of tensors that are the embeddings once more."""
    return getattr(model, "all_tied_weights_keys", {})


def _aimed(config: PeftConfig, tensors: Iterable[str]) -> PeftConfig:
    """An adapter's PEFT configuration, aimed at the very layers it adapts, if any; its head is ours to hold.

    Its own `target_modules` may fit more here: the shared backbone has layers, such as BERT's pooler, that the
    architecture's task classes leave out.
    """
    own = f".{PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type]}"  # `….query.lora_A.weight` adapts `….query`
    adapted = {name.removeprefix(PEFT_PREFIX).rpartition(own)[0] for name in tensors if own in name}
    config.target_modules, config.modules_to_save = adapted or DUMMY_TARGET_MODULES, None
    return config


def _held_whole(
    model: transformers.PreTrainedModel, saved: Iterable[str], *, new_head: bool
) -> dict[str, torch.Tensor]:
    """What an adapter holds whole, by its names in the adapter's files: a new head, and the modules `saved` with it."""
    inside = path_of_backbone(model)
    held = tuple(f"{name}." for name in saved if name.startswith(inside))
    state = model.state_dict().items()
    return {
        f"{PEFT_PREFIX}{name}": tensor
        for name, tensor in state
        if name.startswith(held) or (new_head and not name.startswith(inside))
    }


def _misfits(tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """What of an adapter's files this model lacks, or wants in vain, or has in another shape.

    PEFT would load an adapter of another depth or task without a word.
    """
    for name in wanted.keys() | tensors.keys():
        told = name.removeprefix(PEFT_PREFIX)
        if name not in tensors:
            yield f"  {told}: missing"
        elif name not in wanted:
            yield f"  {told}: not in this model"
        elif tensors[name].shape != wanted[name].shape:
            yield f"  {told}: {tuple(tensors[name].shape)} where the model has {tuple(wanted[name].shape)}"

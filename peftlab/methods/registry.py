"""METHODS: one record for each method; add a method's adapter to a base, and measure the adapter's size."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import TrainerCallback

from peftlab.base import Base
from peftlab.errors import reraise_as_recipe_error
from peftlab.methods.adalora import adalora_config
from peftlab.methods.adalora_training import AdaLoraCallback, orthogonality_loss
from peftlab.methods.bitfit import bitfit_config
from peftlab.methods.bottleneck import bottleneck_config
from peftlab.methods.full import full_config
from peftlab.methods.head import head_config
from peftlab.methods.ia3 import ia3_config
from peftlab.methods.last_layers import last_layers_config
from peftlab.methods.ln_tuning import ln_tuning_config
from peftlab.methods.lora import lora_config, loraplus_optimizer
from peftlab.methods.peft_methods import peft_method_config
from peftlab.methods.prefix import prefix_config
from peftlab.methods.prompt import p_tuning_config, prompt_config
from peftlab.recipe import (
    METHOD_PLUGINS,
    PEFT_METHODS,
    AdaLora,
    BitFit,
    Bottleneck,
    Full,
    Head,
    Ia3,
    LastLayers,
    LnTuning,
    Lora,
    Method,
    MethodInfo,
    PeftMethod,
    Prefix,
    Prompt,
    PTuning,
    Registry,
)
from peftlab.tasks import Task


@dataclass(frozen=True, kw_only=True)
class TrainingHooks:
    """What a method adds to training besides its parameters; None if it adds nothing."""

    callbacks: Callable[[PeftModel, Any, Callable[[str], None]], list[TrainerCallback]] | None = None
    """(model, section, warn) → callbacks of Trainer; `warn` shows the user a sentence."""
    loss: Callable[[torch.nn.Module, Any], torch.Tensor] | None = None
    """(model, section) → a term of the loss, added in every batch."""
    optimizer: Callable[..., torch.optim.Optimizer | None] | None = None
    """(model, section, optimizer type, its settings, weight decay) → the optimizer; None means Trainer's own."""


@dataclass(frozen=True)
class MethodRecord:
    """Everything that peftlab knows about a method.

    `section` is the method's section of a recipe. Its `info` says what the method cannot be combined with, its usual
    learning rate, and how adapters are routed, merged and shown. `build_config` makes PEFT's configuration for a base,
    a section and a task; task type and head are filled in afterwards. It raises RecipeError if the base lacks a layer.
    """

    section: type[Method]
    build_config: Callable[[Base, Any, Task], PeftConfig]
    training: TrainingHooks = TrainingHooks()


METHODS: Registry[MethodRecord] = Registry(
    METHOD_PLUGINS,
    MethodRecord,
    {
        "lora": MethodRecord(Lora, lora_config, TrainingHooks(optimizer=loraplus_optimizer)),
        "adalora": MethodRecord(
            AdaLora,
            adalora_config,
            TrainingHooks(callbacks=lambda *args: [AdaLoraCallback(*args)], loss=orthogonality_loss),
        ),
        "bottleneck": MethodRecord(Bottleneck, bottleneck_config),
        "ia3": MethodRecord(Ia3, ia3_config),
        "prefix": MethodRecord(Prefix, prefix_config),
        "prompt": MethodRecord(Prompt, prompt_config),
        "p-tuning": MethodRecord(PTuning, p_tuning_config),
        "bitfit": MethodRecord(BitFit, bitfit_config),
        "ln-tuning": MethodRecord(LnTuning, ln_tuning_config),
        "head": MethodRecord(Head, head_config),
        "last-layers": MethodRecord(LastLayers, last_layers_config),
        "full": MethodRecord(Full, full_config),
        **dict.fromkeys(PEFT_METHODS, MethodRecord(PeftMethod, peft_method_config)),
    },
)
"""Peftlab's own, and those of other packages (entry points `peftlab.methods`), by type."""


def method_info(method_type: str) -> MethodInfo:
    """Return what is known about a method type; the default `MethodInfo` if the method is not installed.

    Raises:
        PluginError: the package that provides the method cannot be used.
    """
    record = METHODS.get(method_type)
    return record.section.info_of(method_type) if record else MethodInfo()


def create_peft_model(base: Base, section: Method, task: Task) -> PeftModel:
    """Freeze the base and add the method's delta, so that only delta and head are trained.

    Raises:
        RecipeError: the base lacks a layer that the section names, has nothing to train for this method, or has layers
            of a type or size that the method does not support.
    """
    config = peft_config(base, section, task)
    message = f"PEFT cannot put '{section.type}' on this base"
    with reraise_as_recipe_error(message, TypeError, ValueError, NotImplementedError, key="method"):
        return get_peft_model(base.model, config)


def peft_config(base: Base, section: Method, task: Task) -> PeftConfig:
    """PEFT's configuration for the method, the base and its head.

    Raises:
        RecipeError: as for `create_peft_model`.
    """
    config: Any = METHODS[section.type].build_config(base, section, task)
    saved = config.modules_to_save or []
    config.modules_to_save = [*saved, *(name for name in base.head_modules if name not in saved)]
    config.task_type = task.head.peft_task_type
    return config


def count_trainable_parameters(model: torch.nn.Module) -> int:
    """The number of trainable parameters: delta and head."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def saved_bytes(model: PeftModel) -> int:
    """Bytes of the adapter's weights in its file: delta, head, and the frozen tensors that some methods save."""
    return sum(tensor.nbytes for tensor in get_peft_model_state_dict(model, save_embedding_layers=False).values())


def size_warning(model: PeftModel, base: Base, section: Method) -> str:
    """A warning if frozen tensors make the adapter's file larger than its base; else an empty string."""
    size = saved_bytes(model)
    if size < max(base.num_bytes_fp32, 8 * count_trainable_parameters(model)):  # `full` trains everything that it saves
        return ""
    warning = f"the adapter will take {size / 1e6:.0f} MB, more than its base, and most of it is not trained."
    return f"{warning} {section.info_of(section.type).size_hint}".rstrip()

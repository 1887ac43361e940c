"""A base + the method section of a recipe → a model of which only the delta and the head train."""

from collections.abc import Callable
from typing import Any, get_args

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict

from peftlab.base import Base
from peftlab.errors import reraise_as_recipe_error
from peftlab.methods.adalora import adalora_config
from peftlab.methods.bitfit import bitfit_config
from peftlab.methods.bottleneck import bottleneck_config
from peftlab.methods.full import full_config
from peftlab.methods.head import head_config
from peftlab.methods.ia3 import ia3_config
from peftlab.methods.last_layers import last_layers_config
from peftlab.methods.ln_tuning import ln_tuning_config
from peftlab.methods.lora import lora_config
from peftlab.methods.peft_methods import other_config
from peftlab.methods.prefix import prefix_config
from peftlab.methods.prompt import p_tuning_config, prompt_config
from peftlab.methods.trainable_tokens import trained_tokens
from peftlab.recipe import Lora, MethodSection, OtherMethod
from peftlab.tasks import Task

OTHERS = get_args(OtherMethod.model_fields["type"].annotation)
METHODS: dict[str, Callable[..., PeftConfig]] = {
    "lora": lora_config,
    "adalora": adalora_config,
    "bottleneck": bottleneck_config,
    "ia3": ia3_config,
    "prefix": prefix_config,
    "prompt": prompt_config,
    "p-tuning": p_tuning_config,
    "bitfit": bitfit_config,
    "ln-tuning": ln_tuning_config,
    "head": head_config,
    "last-layers": last_layers_config,
    "full": full_config,
    **dict.fromkeys(OTHERS, other_config),
}


def adapt(base: Base, section: MethodSection, task: Task) -> PeftModel:
    """Freeze the base, add the method's delta to it, and leave delta and head to train.

    Raises:
        RecipeError: this base has no such layer as the section names, nothing that the method could train, or layers of
            a kind or size that it cannot change.
    """
    config = peft_config(base, section, task)
    refused = f"PEFT cannot put '{section.type}' on this base"
    with reraise_as_recipe_error(refused, TypeError, ValueError, NotImplementedError, key="method"):
        return get_peft_model(base.model, config)


def peft_config(base: Base, section: MethodSection, task: Task) -> PeftConfig:
    """What PEFT needs to know of the method, the base and its head.

    Raises:
        RecipeError: as `adapt`.
    """
    shared: dict[str, Any] = {"task_type": task.peft_task_type, "modules_to_save": list(base.head_modules)}
    if isinstance(section, Lora) and section.trainable_token_indices:
        shared["trainable_token_indices"] = trained_tokens(base, section.trainable_token_indices, task)
    return METHODS[section.type](base, section, **shared)


def trained_parameters(model: torch.nn.Module) -> int:
    """How many parameters train: delta and head."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def saved_bytes(model: PeftModel) -> int:
    """Size of the adapter's weights in its file: delta and head, and what a method keeps beside that does not train."""
    return sum(tensor.nbytes for tensor in get_peft_model_state_dict(model, save_embedding_layers=False).values())


def heavier_than_its_base(model: PeftModel, base: Base, section: MethodSection) -> str:
    """What to say of an adapter that, for what does not train in it, takes more disk than its base; else nothing."""
    size = saved_bytes(model)
    if size < max(base.num_bytes_fp32, 8 * trained_parameters(model)):  # `full` holds its base, but trains it all
        return ""
    told = f"the adapter will hold {size / 1e6:.0f} MB, more than its base, most of which does not train."
    drawn_anew = " With method.save_projection: false, PEFT draws that part anew on loading."
    return told + drawn_anew if section.type == "randlora" else told

"""Trainer arguments for each distributed backend, and the full model after a sharded run.

With ddp each process holds the full base, and only gradients of delta and head are communicated. With fsdp (PyTorch's
fully_shard) and deepspeed (ZeRO-3) each process holds a shard of the base and gathers the rest layer by layer, so all
processes must run the model at the same time.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel

from peftlab.base import load_base
from peftlab.methods import create_peft_model
from peftlab.store import WEIGHTS_FILE
from peftlab.tuning.checkpoints import TRAINER_STATE, last_checkpoint
from peftlab.tuning.run import Run


def backend_arguments(run: Run) -> dict[str, Any]:
    """The TrainingArguments that a distributed run needs; none with one process."""
    if run.process_group.world_size == 1:
        return {}
    match run.recipe.training.distributed:
        case "fsdp":
            return {"fsdp": True, "fsdp_config": fsdp_config(run.model)}
        case "deepspeed":
            return {"deepspeed": deepspeed_config()}
        case _:
            return {"ddp_find_unused_parameters": True}  # the task may not use every layer


def fsdp_config(model: PreTrainedModel | PeftModel) -> dict[str, Any]:
    """FSDP2 by layers of the base. It shards each tensor separately, so a layer may have frozen and trained ones.

    With `FULL_STATE_DICT` each checkpoint holds a complete adapter in PEFT's format.
    """
    return {
        "version": 2,
        "reshard_after_forward": True,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": layer_classes(model),
        "state_dict_type": "FULL_STATE_DICT",
        "cpu_ram_efficient_loading": False,  # every process has already loaded the base
    }


def layer_classes(model: PreTrainedModel | PeftModel) -> list[str]:
    """Class names of the repeated layers: those that the architecture names, or else the items of its module lists.

    Some architectures name their embeddings too. Accelerate shards those separately, and fails if a layer holds them.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    named = {type(module) for module in model.modules() if type(module).__name__ in names}
    with_embeddings = {type(module) for module in model.modules() if model.get_input_embeddings() in module.modules()}
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    return sorted(
        layer.__name__ for layer in named - with_embeddings or {type(layer) for layers in lists for layer in layers}
    )


def deepspeed_config() -> dict[str, Any]:
    """ZeRO-3, the only stage that shards the frozen base, which needs the most memory. Trainer replaces "auto"."""
    return {
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,  # for any dtype: else checkpoints hold no adapter
        },
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
    }


def idle_gpus_warning(run: Run) -> str:
    """A warning if this machine has GPUs that the run does not use; else empty."""
    num_gpus = torch.cuda.device_count() if run.device.type == "cuda" else 0
    if run.process_group.world_size > 1 or num_gpus < 2:
        return ""
    return f'this run uses one of {num_gpus} GPUs. To use all: --launch "torchrun --nproc-per-node {num_gpus}"'


def unshard(run: Run, folder: Path) -> Run:
    """The run with its best checkpoint on an unsharded base, so that it can be scored and published like any other.

    Every process loads the base again; `folder` holds the checkpoints.
    """
    if not run.sharded:
        return run
    checkpoint = last_checkpoint(folder)
    assert checkpoint is not None  # each epoch saved one
    best = json.loads((checkpoint / TRAINER_STATE).read_text(encoding="utf8"))["best_model_checkpoint"]
    base = load_base(run.recipe.base, run.task, seed=run.recipe.training.seed, device=run.device.type)
    model = create_peft_model(base, run.recipe.method, run.task)
    set_peft_model_state_dict(model, load_file(Path(best or checkpoint) / WEIGHTS_FILE, device=str(run.device)))
    return replace(run, base=base, model=model, sharded=False)

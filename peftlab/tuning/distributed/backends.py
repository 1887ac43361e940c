"""What Trainer is told where several processes share a run: ddp, fsdp or deepspeed; and what each of these asks of us.

With ddp each process holds the whole base, and only the gradients of delta and head travel. With fsdp (PyTorch's
fully_shard) and deepspeed (ZeRO-3) each holds a part of the base and gets the rest layer by layer, so all must go
through the model at the same time.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel

from peftlab.base import load_base
from peftlab.methods import adapt
from peftlab.store import WEIGHTS_FILE
from peftlab.tasks import Continuation, Feature, Task
from peftlab.tasks.prediction import Outcome, Through, asks, longest_first
from peftlab.tuning.checkpoints import STATE, last_checkpoint
from peftlab.tuning.distributed.process_group import Processes
from peftlab.tuning.run import Run


def engine_arguments(run: Run) -> dict[str, Any]:
    """The part of TrainingArguments that several processes need."""
    if run.processes.count == 1:
        return {}
    match run.recipe.training.distributed:
        case "fsdp":
            return {"fsdp": True, "fsdp_config": fsdp_config(run.model)}
        case "deepspeed":
            return {"deepspeed": deepspeed_config()}
        case _:
            return {"ddp_find_unused_parameters": True}  # a layer that this task never reaches is no error


def fsdp_config(model: PreTrainedModel | PeftModel) -> dict[str, Any]:
    """FSDP2 by layers of the base. It shards each tensor alone, so frozen and trained ones may share a layer.

    `FULL_STATE_DICT` makes each checkpoint hold a whole adapter in PEFT's format.
    """
    return {
        "version": 2,
        "reshard_after_forward": True,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": layer_classes(model),
        "state_dict_type": "FULL_STATE_DICT",
        "cpu_ram_efficient_loading": False,  # every process has read the base by then
    }


def layer_classes(model: PreTrainedModel | PeftModel) -> list[str]:
    """Names of the classes of the repeated layers: as the architecture tells them, or else what its lists hold.

    Some architectures tell their embeddings as well. Accelerate shards those apart, and fails if a layer holds them.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    told = {type(module) for module in model.modules() if type(module).__name__ in names}
    holding = {type(module) for module in model.modules() if model.get_input_embeddings() in set(module.modules())}
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    return sorted(layer.__name__ for layer in told - holding or {type(layer) for layers in lists for layer in layers})


def deepspeed_config() -> dict[str, Any]:
    """ZeRO-3: the frozen base is what takes the room, and only this stage shards it. "auto" is filled in by Trainer."""
    return {
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,  # of any dtype: else no checkpoint holds an adapter
        },
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
    }


def idle_gpus(run: Run) -> str:
    """A sentence where this machine has GPUs that the run leaves idle, else nothing."""
    count = torch.cuda.device_count() if run.device.type == "cuda" else 0
    if run.processes.count > 1 or count < 2:
        return ""
    return f'this machine has {count} GPUs, and one trains. For all: --launch "torchrun --nproc-per-node {count}"'


def divided(alone: Through, task: Task, processes: Processes, *, sharded: bool) -> Through:
    """`alone`, of which each process does a share, so that all get all outcomes.

    With a sharded base every process does all of it, in step with the others.
    """
    if processes.count == 1 or sharded:
        return alone

    def through(features: Sequence[Feature]) -> Sequence[Outcome]:
        mine = longest_first(features)[processes.index :: processes.count]
        made: dict[int, Any] = dict(zip(mine, alone([features[i] for i in mine]), strict=True))
        if asks(task, features):
            return _all_texts(made, processes)
        return _all_logits(made, task, features, processes)

    return through


def _all_texts(mine: Mapping[int, Continuation], processes: Processes) -> list[Continuation]:
    """Those of all processes, in order."""
    said = processes.exchange(json.dumps({i: asdict(text) for i, text in mine.items()}))
    written = {int(i): Continuation(**text) for heard in said for i, text in json.loads(heard).items()}
    return [written[i] for i in sorted(written)]


def _all_logits(
    mine: Mapping[int, torch.Tensor], task: Task, features: Sequence[Feature], processes: Processes
) -> list[torch.Tensor]:
    """Those of all processes, in order: each has zeros for what is not its own, and they are added up."""
    width = task.output_width
    logits = [torch.zeros((len(f), width) if task.per_token else (width,)) for f in features]
    for i, output in mine.items():
        logits[i] = output.float()
    flat = torch.cat([part.flatten() for part in logits])
    processes.sum_up(flat)
    parts = flat.split([part.numel() for part in logits])
    return [part.view(shaped.shape) for part, shaped in zip(parts, logits, strict=True)]


def whole(run: Run, folder: Path) -> Run:
    """The run with its best checkpoint on an unsharded base, so that it can be scored and published as any other.

    Each process loads the base anew; `folder` holds the checkpoints.
    """
    if not run.sharded:
        return run
    checkpoint = last_checkpoint(folder)
    assert checkpoint is not None  # training ended well, and each epoch saved one
    best = json.loads((checkpoint / STATE).read_text(encoding="utf8"))["best_model_checkpoint"]
    base = load_base(run.recipe.base, run.task, seed=run.recipe.training.seed, device=run.device.type)
    model = adapt(base, run.recipe.method, run.task)
    set_peft_model_state_dict(model, load_file(Path(best) / WEIGHTS_FILE, device=str(run.device)))
    return replace(run, base=base, model=model, sharded=False)

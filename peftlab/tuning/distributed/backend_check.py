"""Check that a run can use the distributed backend of its recipe: ddp, fsdp or deepspeed."""

import importlib.util
import os
from collections.abc import Iterator

from peftlab.base import choose_device
from peftlab.errors import ErrorCollector
from peftlab.recipe import SHARDING
from peftlab.tuning.distributed.process_group import ProcessGroup
from peftlab.tuning.session import TuningSession

LAUNCH_OPTION = '--launch "torchrun --nproc-per-node 2"'


def check_backend(backend: str | None, session: TuningSession, errors: ErrorCollector) -> None:
    """Report every reason why the session cannot use `backend`, the `training.distributed` of a recipe."""
    for reason, hint in _obstacles(backend, session.process_group, session.device):
        errors.add(reason, key="training.distributed", hint=hint)


def shards_base(backend: str | None, process_group: ProcessGroup) -> bool:
    """Whether each process holds only a part of the base."""
    return backend in SHARDING and process_group.world_size > 1


def _obstacles(backend: str | None, process_group: ProcessGroup, device: str) -> Iterator[tuple[str, str]]:
    """Pairs of a reason and a hint."""
    if backend and process_group.world_size == 1:
        yield (
            f"{backend} shares a run among several processes, but there is only one.",
            f"Start several with {LAUNCH_OPTION}, or remove the key: -o training.distributed=null",
        )
    if backend == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        yield "the package deepspeed is not installed.", "pip install deepspeed, or use fsdp, which needs no package."
    if shards_base(backend, process_group) and not _is_on_cuda(device):
        yield f"{backend} shards the base over CUDA GPUs, but this run uses none.", "Use ddp instead."
    for other in SHARDING:
        if backend != other and os.environ.get(f"ACCELERATE_USE_{other.upper()}", "").lower() == "true":
            yield (
                f"accelerate is configured for {other}, but the recipe for {backend or 'ddp'}.",
                f"Set it in the recipe, so that the recipe records it: -o training.distributed={other}",
            )


def _is_on_cuda(device: str) -> bool:
    return choose_device(device).type == "cuda"

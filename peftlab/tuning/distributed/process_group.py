"""The processes of one distributed run, as torchrun or accelerate start them.

A launcher passes world size and ranks in the environment. Every process reads recipe and data and holds a model; the
main process alone reports progress, writes to the store and publishes. With one process all methods do nothing.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from peftlab.base import choose_device
from peftlab.errors import DeviceNotFoundError, ProcessLostError, StoreError
from peftlab.imports import torch

if TYPE_CHECKING:
    from torch import Tensor

TIMEOUT = timedelta(hours=2)  # for a slow process, for example one that downloads; a dead one is detected at once


@dataclass(frozen=True)
class ProcessGroup:
    """All processes of a run, and the place of this process among them.

    `world_size` is the number of processes, `rank` the index of this one, and `local_rank` its index on its machine.
    """

    world_size: int = 1
    rank: int = 0
    local_rank: int = 0

    @classmethod
    def init(cls, device: str = "auto") -> Self:
        """Connect to the processes that the launcher started together with this one, each on its own device.

        Raises:
            DeviceNotFoundError: this process has no GPU.
        """
        group = cls.from_environment()
        if group.world_size > 1:
            group._init_backend(device)
        return group

    @classmethod
    def from_environment(cls) -> Self:
        """The group that a launcher describes in the environment, or this process alone; not connected."""
        values = [os.environ.get(name) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK")]  # a launcher sets them all
        world_size, rank, local_rank = (int(value) if value else 0 for value in values)
        return cls(world_size, rank, local_rank) if world_size > 1 and all(values) else cls()

    @property
    def is_main(self) -> bool:
        """Whether this process reports progress, writes and publishes."""
        return self.rank == 0

    def destroy(self) -> None:
        """Disconnect after success. A failed process must just exit, because the others may be waiting for it."""
        if self.world_size > 1:
            torch.distributed.destroy_process_group()

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process; the same result in all."""
        return any(self._all_gather_ints([int(flag)])) if self.world_size > 1 else flag

    def all_gather(self, text: str) -> list[str]:
        """The `text` of every process, ordered by rank."""
        if self.world_size == 1:
            return [text]
        encoded = text.encode()
        sizes = self._all_gather_ints([len(encoded)])
        width = max(sizes) + 1  # no tensor may be empty
        gathered = self._all_gather_ints([*encoded, *[0] * (width - len(encoded))])
        return [bytes(gathered[i * width : i * width + size]).decode() for i, size in enumerate(sizes)]

    def broadcast(self, compute: Callable[[], Any]) -> Any:
        """Call `compute` in the main process only and return its result, sent as JSON, in all processes.

        Raises:
            ProcessLostError: `compute` failed in the main process, which raises the original error.
        """
        if self.world_size == 1:
            return compute()
        with self.sync_errors():
            result = json.dumps(compute()) if self.is_main else ""
        return json.loads(self.all_gather(result)[0])

    @contextmanager
    def sync_errors(self) -> Iterator[None]:
        """Fail in all processes if the block fails in any; the lowest failing rank raises its own error.

        Raises:
            ProcessLostError: in all other processes.
        """
        failure: Exception | None = None
        try:
            yield
        except ProcessLostError:  # no other process is left to synchronize with
            raise
        except Exception as error:
            failure = error
        messages = self.all_gather(f"{type(failure).__name__}: {failure}" if failure else "")
        failed = next((rank for rank, message in enumerate(messages) if message), None)
        if failure is not None and failed == self.rank:
            raise failure
        if failed is not None:
            raise ProcessLostError(f"process {failed} ended the run: {messages[failed]}") from failure

    @contextmanager
    def shared_folder(self, folder_context: AbstractContextManager[Path]) -> Iterator[Path]:
        """Enter `folder_context` in the main process only, and give its folder to all processes.

        Raises:
            StoreError: a process on another machine cannot see that folder.
        """
        with ExitStack() as stack:
            folder = Path(self.broadcast(lambda: str(stack.enter_context(folder_context))))
            with self.sync_errors():
                if not folder.is_dir():
                    raise StoreError(
                        f"process {self.rank} cannot see {folder}, which process 0 created. With several machines the "
                        "store must be on a disk that all of them share: choose one with --store."
                    )
            yield folder

    def seed_per_rank(self, seed: int) -> None:
        """Seed each process differently, so that dropout masks differ across ranks; the main process keeps its seed."""
        if self.rank > 0:
            torch.manual_seed(seed + self.rank)

    def all_reduce(self, values: "Tensor") -> None:
        """Sum a CPU tensor over all processes, in place."""
        if self.world_size > 1:
            with detect_dead_ranks():
                torch.distributed.all_reduce(values)

    def _all_gather_ints(self, values: list[int]) -> list[int]:
        """The values of all processes, concatenated by rank; every process passes the same number of values."""
        local = torch.tensor(values)
        parts = [torch.empty_like(local) for _ in range(self.world_size)]
        with detect_dead_ranks():
            torch.distributed.all_gather(parts, local)
        return [int(value) for part in parts for value in part]

    def _init_backend(self, device: str) -> None:
        backend = "cuda:nccl,cpu:gloo" if self._select_device(device) == "cuda" else "gloo"
        if not torch.distributed.is_initialized():
            with detect_dead_ranks():
                torch.distributed.init_process_group(backend, timeout=TIMEOUT)

    def _select_device(self, device: str) -> str:
        """The device type of this process; on CUDA its own GPU becomes the current device."""
        device_type = choose_device(device).type
        if device_type == "mps":
            raise DeviceNotFoundError(
                "several processes need CUDA GPUs; this machine has mps. Use --device cpu instead."
            )
        if device_type == "cuda" and self.local_rank >= torch.cuda.device_count():
            raise DeviceNotFoundError(
                f"there is no GPU for process {self.local_rank + 1} of this machine: it has "
                f"{torch.cuda.device_count()}. Launch as many processes as there are GPUs."
            )
        if device_type == "cuda":
            torch.cuda.set_device(self.local_rank)
        return device_type


@contextmanager
def detect_dead_ranks(next_step: Callable[[], str] = lambda: "Start it again.") -> Iterator[None]:
    """Turn a broken connection into a one-sentence error that ends with `next_step`.

    Raises:
        ProcessLostError: another process has ended while this one waited for it.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_broken_connection(error):
            raise
        raise ProcessLostError(f"another process of this run has ended, and the run with it. {next_step()}") from error


def _is_broken_connection(error: RuntimeError) -> bool:
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)  # gloo raises plain RuntimeErrors

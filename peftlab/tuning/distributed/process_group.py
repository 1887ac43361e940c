"""One run in several processes, as torchrun or accelerate start them: their places, and how they agree.

A launcher tells each process its place in the environment. Each reads the recipe and the data and holds a model; the
first one alone tells, writes to the store and publishes. Where there is one process, all of this costs nothing.
"""

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from peftlab.errors import DeviceNotFoundError, ErrorCollector, ProcessLostError, StoreError
from peftlab.recipe import SHARDING

if TYPE_CHECKING:
    import torch

LAUNCH = '--launch "torchrun --nproc-per-node 2"'
PATIENCE = timedelta(hours=2)  # for a process that is slow, as in a download; one that dies is noticed at once


@dataclass(frozen=True)
class Processes:
    """The processes of one run, seen from one of them: number `index` of `count`, number `local_index` of its machine.

    Numbers begin at 0, as the launchers count.
    """

    count: int = 1
    index: int = 0
    local_index: int = 0

    @classmethod
    def join(cls, device: str = "auto") -> Self:
        """Connect with those that a launcher started together with this one, each on a device of its own.

        Raises:
            DeviceNotFoundError: there is no GPU for this process.
        """
        joined = cls.around()
        if joined.count > 1:
            joined._connect(device)
        return joined

    @classmethod
    def around(cls) -> Self:
        """Those that a launcher started; this one alone where none did."""
        places = [os.environ.get(name) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK")]  # a launcher sets them all
        count, index, local = (int(place) if place else 0 for place in places)
        return cls(count, index, local) if count > 1 and all(places) else cls()

    @property
    def first(self) -> bool:
        """Whether this is the one that tells, writes and publishes."""
        return self.index == 0

    def leave(self) -> None:
        """Disconnect, after all went well: a process that failed just ends, for others may wait for nothing."""
        if self.count > 1:
            import torch.distributed

            torch.distributed.destroy_process_group()

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds in any process; every one gets the same answer."""
        return any(self._gathered([int(flag)])) if self.count > 1 else flag

    def exchange(self, text: str) -> list[str]:
        """What each process says, in their order."""
        if self.count == 1:
            return [text]
        said = text.encode()
        sizes = self._gathered([len(said)])
        width = max(sizes) + 1  # no tensor may be empty
        heard = self._gathered([*said, *[0] * (width - len(said))])
        return [bytes(heard[i * width : i * width + size]).decode() for i, size in enumerate(sizes)]

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What `make` gives in the first process, in all of them; it travels as JSON.

        Raises:
            ProcessLostError: it failed there; the first process raises what it raised.
        """
        if self.count == 1:
            return make()
        with self.together():
            made = json.dumps(make()) if self.first else ""
        return json.loads(self.exchange(made)[0])

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails inside the block in one process fails in all; the first of those that failed keeps its own error.

        Raises:
            ProcessLostError: in all the others.
        """
        failure: Exception | None = None
        try:
            yield
        except ProcessLostError:  # nobody is left to agree with
            raise
        except Exception as error:
            failure = error
        told = self.exchange(f"{type(failure).__name__}: {failure}" if failure else "")
        failed = next((index for index, message in enumerate(told) if message), None)
        if failure is not None and failed == self.index:
            raise failure
        if failed is not None:
            raise ProcessLostError(f"process {failed} ended the run: {told[failed]}") from failure

    @contextmanager
    def opened_by_first(self, opening: AbstractContextManager[Path]) -> Iterator[Path]:
        """Enter `opening` in the first process alone; all get the folder that it gives.

        Raises:
            StoreError: a process on another machine does not see that folder.
        """
        with ExitStack() as stack:
            folder = Path(self.from_first(lambda: str(stack.enter_context(opening))))
            with self.together():
                if not folder.is_dir():
                    raise StoreError(
                        f"process {self.index} does not see {folder}, which process 0 made. On several machines the "
                        "store must lie on a disk that all of them share: choose one with --store."
                    )
            yield folder

    def differ_by_chance(self, seed: int) -> None:
        """Seed each process apart, so that dropout falls differently on different rows; the first stays as it is."""
        if self.index > 0:
            import torch

            torch.manual_seed(seed + self.index)

    def sum_up(self, values: "torch.Tensor") -> None:
        """Add up a CPU tensor over all processes, in place."""
        if self.count > 1:
            import torch.distributed

            with noticing_losses():
                torch.distributed.all_reduce(values)

    def _gathered(self, values: list[int]) -> list[int]:
        """The values of all processes, one list after the other; each must give as many."""
        import torch
        import torch.distributed

        mine = torch.tensor(values)
        parts = [torch.empty_like(mine) for _ in range(self.count)]
        with noticing_losses():
            torch.distributed.all_gather(parts, mine)
        return [int(value) for part in parts for value in part]

    def _connect(self, device: str) -> None:
        import torch.distributed

        backend = "cuda:nccl,cpu:gloo" if self._claim(device) == "cuda" else "gloo"
        if not torch.distributed.is_initialized():
            with noticing_losses():
                torch.distributed.init_process_group(backend, timeout=PATIENCE)

    def _claim(self, device: str) -> str:
        """Make the GPU of this process the one that "cuda" means; the kind of its device."""
        import torch

        from peftlab.base import choose_device

        kind = choose_device(device).type
        if kind == "mps":
            raise DeviceNotFoundError("several processes need CUDA GPUs; here there is mps. Use --device cpu instead.")
        if kind == "cuda" and self.local_index >= torch.cuda.device_count():
            raise DeviceNotFoundError(
                f"there is no GPU for process {self.local_index + 1} of this machine: it has "
                f"{torch.cuda.device_count()}. Launch as many processes as there are GPUs."
            )
        if kind == "cuda":
            torch.cuda.set_device(self.local_index)
        return kind


def check_engine(wanted: str | None, processes: Processes, device: str, errors: ErrorCollector) -> bool:
    """Note why a run cannot be `distributed` as its recipe wants; whether each process will hold a part of the base."""
    for reason, hint in _hindrances(wanted, processes, device):
        errors.add(reason, key="training.distributed", hint=hint)
    return wanted in SHARDING


def _hindrances(wanted: str | None, processes: Processes, device: str) -> Iterator[tuple[str, str]]:
    """Sentences that say what is in the way, each with one that says what to do."""
    if wanted and processes.count == 1:
        yield (
            f"{wanted} shares a run among several processes, and this is a single one.",
            f"Start several with {LAUNCH}, or take the key out: -o training.distributed=null",
        )
    if wanted == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        yield "the package deepspeed is not installed.", "pip install deepspeed, or take fsdp, which needs no package."
    if wanted in SHARDING and processes.count > 1 and not _on_gpus(device):
        yield f"{wanted} shards the base over CUDA GPUs, and this run computes on none.", "Take ddp instead."
    for engine in SHARDING:
        if wanted != engine and os.environ.get(f"ACCELERATE_USE_{engine.upper()}", "").lower() == "true":
            yield (
                f"accelerate is configured for {engine}, the recipe for {wanted or 'ddp'}.",
                f"Say it in the recipe, so that it tells how it was trained: -o training.distributed={engine}",
            )


def _on_gpus(device: str) -> bool:
    from peftlab.base import choose_device

    return choose_device(device).type == "cuda"


@contextmanager
def noticing_losses(next_step: Callable[[], str] = lambda: "Start it again.") -> Iterator[None]:
    """Turn a connection that breaks into one sentence, which ends with `next_step`.

    Raises:
        ProcessLostError: another process has ended while this one was to hear from it.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_broken_connection(error):
            raise
        raise ProcessLostError(f"another process of this run has ended, and the run with it. {next_step()}") from error


def _is_broken_connection(error: RuntimeError) -> bool:
    import torch.distributed

    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)  # gloo raises bare RuntimeErrors

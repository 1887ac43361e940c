"""The environment of a tuning run: device, processes, store, progress, resuming, time. The steps are in `tune.py`."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from peftlab.errors import ErrorCollector
from peftlab.store import Store
from peftlab.tuning.distributed.process_group import ProcessGroup
from peftlab.tuning.progress import Progress


@dataclass(frozen=True)
class TuningSession:
    """The options of a run that are not in its recipe.

    Attributes:
        store: Where checkpoints and the adapter are written.
        device: auto, cpu, cuda or mps.
        resume: Continue from the last checkpoint of an interrupted run.
        publish_anyway: Publish an adapter that is no better than the majority.
        progress: Receives what happens; does nothing in processes other than the main one.
        process_group: The processes that share the run.
    """

    store: Store
    device: str = "auto"
    resume: bool = False
    publish_anyway: bool = False
    progress: Progress = field(default_factory=Progress)
    process_group: ProcessGroup = field(default_factory=ProcessGroup)
    _started: float = field(default_factory=time.monotonic)
    _open_contexts: ExitStack = field(default_factory=ExitStack)

    @classmethod
    @contextmanager
    def open(
        cls, store: str | Path, *, device: str, resume: bool, publish_anyway: bool, progress: Progress | None
    ) -> Iterator[Self]:
        """Connect the processes of a launcher; on exit release the run's folder, and disconnect after success.

        Raises:
            DeviceNotFoundError: a process has no GPU.
        """
        started, process_group = time.monotonic(), ProcessGroup.init(device)
        reported = progress if progress and process_group.is_main else Progress()
        with ExitStack() as contexts:
            yield cls(Store(store), device, resume, publish_anyway, reported, process_group, started, contexts)
        process_group.destroy()

    @contextmanager
    def collect_errors(self) -> Iterator[ErrorCollector]:
        """Raise all errors reported inside the block as one RecipeError, in all processes."""
        with self.process_group.sync_errors(), ErrorCollector() as errors:
            yield errors

    def open_run_folder(self, name: str, required_bytes: int) -> Path:
        """The folder for checkpoints, locked until the session ends; removed if the run succeeds.

        Raises:
            StoreError: the store cannot be written, has too little space, or another run uses the name.
        """
        folder = self.store.tuning_run(name, required_bytes, resume=self.resume)
        return self._open_contexts.enter_context(self.process_group.shared_folder(folder))

    @property
    def seconds(self) -> float:
        """Time since the session began."""
        return time.monotonic() - self._started

"""What a published adapter's files hold, verified and in host memory."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from peftlab.errors import IntegrityError
from peftlab.store import CONFIG_FILE, WEIGHTS_FILE, Adapter, Store
from peftlab.tasks import Task

OF_ITS_MAKING = ("base_model_name_or_path", "revision", "peft_version", "inference_mode")


@dataclass(frozen=True, eq=False)
class AdapterFiles:
    """An adapter with its task, PEFT's configuration as it was saved, and every tensor by its name in the file."""

    adapter: Adapter
    task: Task
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def bytes(self) -> int:
        """Of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def kind(self) -> str:
        """Equal for adapters that differ in the values of their tensors alone."""
        config = {key: _in_order(value) for key, value in self.config.items() if key not in OF_ITS_MAKING}
        shapes = {name: list(tensor.shape) for name, tensor in self.tensors.items()}
        head = [self.task.auto_class, len(self.task.head_labels), self.task.problem_type]
        return json.dumps([head, config, shapes], sort_keys=True)


def read_files(store: Store, reference: str) -> AdapterFiles:
    """Verify an adapter and read it.

    Raises:
        AdapterNotFoundError: no such adapter.
        IntegrityError: it is damaged, cannot be read, or is of a task that this version does not know.
    """
    adapter, contents = store.read_files(reference, (CONFIG_FILE, WEIGHTS_FILE))
    task = adapter.task
    for needed in (CONFIG_FILE, WEIGHTS_FILE):
        if needed not in contents:
            raise IntegrityError(f"{adapter} was published without {needed}, so there is nothing to load.")
    with _parse_errors(adapter, CONFIG_FILE):
        config = json.loads(contents[CONFIG_FILE].decode())
    with _parse_errors(adapter, WEIGHTS_FILE):
        tensors = load(contents[WEIGHTS_FILE])
    return AdapterFiles(adapter, task, config, whole(tensors))


@contextmanager
def _parse_errors(adapter: Adapter, file: str) -> Iterator[None]:
    """Raise IntegrityError where the content of `file` cannot be parsed: what was published may be anything."""
    try:
        yield
    except (ValueError, SafetensorError) as fault:
        raise IntegrityError(f"{adapter}: {file} cannot be read: {fault}") from fault


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As the base computes, and as PEFT loads them; files may hold halves."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _in_order(value: Any) -> Any:
    """PEFT saves sets as lists, in any order."""
    return sorted(value) if isinstance(value, list) and all(isinstance(part, str) for part in value) else value

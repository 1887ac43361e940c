"""The files of a published adapter, verified and read into host memory."""

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

PROVENANCE_KEYS = ("base_model_name_or_path", "revision", "peft_version", "inference_mode")
"""Keys of adapter_config.json that don't change what the adapter computes."""


@dataclass(frozen=True, eq=False)
class AdapterFiles:
    """An adapter with its task, its PEFT configuration as saved, and its tensors by their names in the file."""

    adapter: Adapter
    task: Task
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def num_bytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def template_key(self) -> str:
        """Equal for adapters that differ only in the values of their tensors."""
        config = {key: _sort_names(value) for key, value in self.config.items() if key not in PROVENANCE_KEYS}
        shapes = {name: list(tensor.shape) for name, tensor in self.tensors.items()}
        own = self.task.head
        head = [own.auto_class, own.pooling, len(own.labels), own.problem_type]
        return json.dumps([head, config, shapes], sort_keys=True)


def read_files(store: Store, reference: str) -> AdapterFiles:
    """Verify an adapter and read its files.

    Raises:
        AdapterNotFoundError: no such adapter.
        IntegrityError: it is damaged, cannot be read, or this version of peftlab does not know its task.
    """
    adapter, contents = store.read_files(reference, (CONFIG_FILE, WEIGHTS_FILE))
    return _parse_files(adapter, contents)


def read_folder(adapter: Adapter) -> AdapterFiles:
    """Read the files of an adapter that is not published yet; raises as `read_files`."""
    return _parse_files(adapter, {name: (adapter.folder / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)})


def _parse_files(adapter: Adapter, contents: Mapping[str, bytes]) -> AdapterFiles:
    task = adapter.task
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in contents:
            raise IntegrityError(f"{adapter} was published without {name}, so there is nothing to load.")
    with _parse_errors(adapter, CONFIG_FILE):
        config = json.loads(contents[CONFIG_FILE].decode())
    with _parse_errors(adapter, WEIGHTS_FILE):
        tensors = load(contents[WEIGHTS_FILE])
    return AdapterFiles(adapter, task, config, as_float32(tensors))


@contextmanager
def _parse_errors(adapter: Adapter, file: str) -> Iterator[None]:
    """Raise IntegrityError if the block cannot parse a file: verified files may still be invalid."""
    try:
        yield
    except (ValueError, SafetensorError) as error:
        raise IntegrityError(f"{adapter}: {file} cannot be read: {error}") from error


def as_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert floating-point tensors to fp32, as PEFT does on loading; files may hold fp16 or bf16."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _sort_names(value: Any) -> Any:
    """Sort lists of names, which PEFT saves from sets in any order."""
    return sorted(value) if isinstance(value, list) and all(isinstance(name, str) for name in value) else value

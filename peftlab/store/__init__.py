"""Adapters on disk: published atomically, found by name, verified by the sha256 of every file."""

from peftlab.store.adapter import Adapter, AdapterVersion
from peftlab.store.files import make_readable
from peftlab.store.layout import (
    ADAPTER_NAME,
    CONFIG_FILE,
    MANIFEST_FILE,
    PEFT_PREFIX,
    STACK_SEPARATOR,
    WEIGHTS_FILE,
)
from peftlab.store.manifest import Manifest, build_manifest, main_split
from peftlab.store.manifest_parts import (
    BaseInfo,
    BaselineInfo,
    BaseMemory,
    DataInfo,
    ImportInfo,
    LedgerInfo,
    ParameterCounts,
    StartInfo,
    TaskInfo,
)
from peftlab.store.store import Store

__all__ = [
    "ADAPTER_NAME",
    "CONFIG_FILE",
    "MANIFEST_FILE",
    "PEFT_PREFIX",
    "STACK_SEPARATOR",
    "WEIGHTS_FILE",
    "Adapter",
    "AdapterVersion",
    "BaseInfo",
    "BaseMemory",
    "BaselineInfo",
    "DataInfo",
    "ImportInfo",
    "LedgerInfo",
    "Manifest",
    "ParameterCounts",
    "StartInfo",
    "Store",
    "TaskInfo",
    "build_manifest",
    "main_split",
    "make_readable",
]

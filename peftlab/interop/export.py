"""Export a published adapter as a folder for another program; see `exporters.py` for each of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from peftlab.errors import IntegrityError
from peftlab.interop.exporters import EXPORTERS
from peftlab.interop.output_folder import new_folder
from peftlab.runtime.adapter_files import read_files
from peftlab.store import Adapter, Store

ExportFormat = Literal["peft", "vllm", "gguf-lora", "ollama"]


@dataclass(frozen=True)
class ExportedAdapter:
    """An exported adapter: its folder, the command that uses it, and what the program does differently."""

    adapter: Adapter
    folder: Path
    command: str
    warnings: tuple[str, ...] = ()


def export_adapter(
    name: str, folder: str | Path, target: ExportFormat, *, store: str | Path = "adapters", base_name: str | None = None
) -> ExportedAdapter:
    """Verify an adapter and write it in the format of another program, with its chat template if it has one.

    Args:
        name: `name` or `name@version`.
        folder: It must be empty or not exist.
        target: peft; vllm, whose rules (vllm/lora/peft_helper.py) are checked first; gguf-lora, an adapter.gguf for
            llama.cpp; ollama, the same with a Modelfile.
        store: Folder of the store.
        base_name: The base in Ollama, as a name in its library or a file; None leaves a placeholder in the Modelfile.

    Raises:
        AdapterNotFoundError: no such adapter.
        BaseNotFoundError: its base, whose configuration gguf-lora and ollama need, is not found.
        IntegrityError: it is damaged, or the program would reject it or compute other outputs.
        PackageNotFoundError: the package gguf, which writes GGUF files, is not installed.
        StoreError: `folder` is not empty, or cannot be written.
        ValueError: `base_name` is for ollama only.
    """
    if base_name is not None and target != "ollama":
        raise ValueError(f"base_name is for ollama, not for {target}")
    exporter = EXPORTERS[target](read_files(Store(store), name), base_name)
    if reasons := list(exporter.unsupported()):
        lines = "\n".join(f"  {reason}" for reason in reasons)
        raise IntegrityError(f"{exporter.adapter} cannot be served by {exporter.program}:\n{lines}")
    with new_folder(Path(folder)) as temporary:
        exporter.write(temporary)
    return ExportedAdapter(exporter.adapter, Path(folder), exporter.command(Path(folder)), exporter.warnings)

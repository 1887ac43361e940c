"""A published adapter as a folder for others; see `handings.py` for each of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from peftlab.errors import IntegrityError
from peftlab.interop.exporters import EXPORTERS
from peftlab.interop.merge import appearing, check_empty
from peftlab.runtime.adapter_files import read_files
from peftlab.store import Adapter, Store

ExportFormat = Literal["peft", "vllm", "gguf-lora", "ollama"]


@dataclass(frozen=True)
class ExportedAdapter:
    """An adapter's copy in `folder`; `command` shows how it is used there, `notes` tell what is otherwise there."""

    adapter: Adapter
    folder: Path
    command: str
    notes: tuple[str, ...] = ()


def export_adapter(
    name: str, folder: str | Path, form: ExportFormat, *, store: str | Path = "adapters", base_name: str | None = None
) -> ExportedAdapter:
    """Write an adapter, verified, as others take it, with its chat template where it has one.

    Args:
        name: `name` or `name@version`.
        folder: Must be empty or not be there.
        form: peft; vllm, whose rules (vllm/lora/peft_helper.py) are checked first; gguf-lora, an adapter.gguf for
            llama.cpp; ollama, the same with a Modelfile.
        store: Folder of the store.
        base_name: What Ollama has the base under: a name in its library, or a file; None leaves its place open.

    Raises:
        AdapterNotFoundError: no such adapter.
        BaseNotFoundError: its base, whose configuration gguf-lora and ollama need, is nowhere.
        IntegrityError: it is damaged, or would be refused there, or something else be served in its place.
        PackageNotFoundError: GGUF files are asked for, and the package gguf is not installed.
        StoreError: `folder` holds something, or cannot be written.
        ValueError: `base_name` goes with ollama alone.
    """
    if base_name is not None and form != "ollama":
        raise ValueError(f"base_name is for ollama, not for {form}")
    read, target = read_files(Store(store), name), Path(folder)
    handing = EXPORTERS[form](read, base_name)
    if reasons := list(handing.refused()):
        told = "\n".join(f"  {reason}" for reason in reasons)
        raise IntegrityError(f"{read.adapter} cannot be served by {handing.server}:\n{told}")
    check_empty(target)
    with appearing(target) as draft:
        handing.write(draft)
    return ExportedAdapter(read.adapter, target, handing.command(target), handing.notes)

"""A published adapter as a folder for others: plain PEFT, vLLM's `--lora-modules`, llama.cpp's `--lora`, Ollama."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from transformers import AutoConfig, PretrainedConfig

from peftlab.base import BaseFiles, load_tokenizer
from peftlab.errors import IntegrityError
from peftlab.runtime.adapter_files import CONFIG, WEIGHTS, AdapterFiles, read_files
from peftlab.runtime.exporting import appearing, check_empty
from peftlab.runtime.gguf_lora import check_gguf, refused_by_llama_cpp, write_gguf
from peftlab.runtime.modelfile import Modelfile
from peftlab.runtime.resident_base import find_tuned_base
from peftlab.store import Adapter, Store

Form = Literal["peft", "vllm", "gguf-lora", "ollama"]
CARD = "README.md"
TEMPLATE = "chat_template.jinja"
GGUF = "adapter.gguf"
MODELFILE = "Modelfile"
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What its --max-lora-rank may be."""


@dataclass(frozen=True)
class HandedOver:
    """An adapter's copy in `folder`; `command` shows how it is used there, `notes` tell what is otherwise there."""

    adapter: Adapter
    folder: Path
    command: str
    notes: tuple[str, ...] = ()


def hand_over(
    name: str, folder: str | Path, form: Form, *, store: str | Path = "adapters", base_name: str | None = None
) -> HandedOver:
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
    handing = OllamaModel(read, base_name) if form == "ollama" else HANDINGS[form](read)
    if reasons := list(handing.refused()):
        told = "\n".join(f"  {reason}" for reason in reasons)
        raise IntegrityError(f"{read.adapter} cannot be served by {handing.server}:\n{told}")
    check_empty(target)
    with appearing(target) as draft:
        handing.write(draft)
    return HandedOver(read.adapter, target, handing.command(target), handing.notes)


class PeftCopy:
    """The adapter's PEFT files as they are."""

    server = "PEFT"

    def __init__(self, read: AdapterFiles) -> None:
        self.read, self.adapter, self.config = read, read.adapter, read.config

    @property
    def notes(self) -> tuple[str, ...]:
        """What is otherwise there than here."""
        return ()

    @property
    def template(self) -> str | None:
        """How chats are written for it, if it chats."""
        return self.read.task.learned.get("chat_template")

    def refused(self) -> Iterator[str]:
        """Why it cannot be served there: what would be refused, and what would be left out without a word."""
        return iter(())

    def write(self, folder: Path) -> None:
        """All that is needed there."""
        for file in (WEIGHTS, CARD):
            shutil.copy(self.adapter.folder / file, folder)
        # vLLM wants none, not an empty list
        saved = {**self.config, "modules_to_save": self.config.get("modules_to_save") or None}
        (folder / CONFIG).write_text(json.dumps(saved, indent=2), encoding="utf8")
        self._write_template(folder)

    def command(self, folder: Path) -> str:
        """How it is used there."""
        auto_class, base = self.read.task.auto_class, self.adapter.manifest["base"]["model"]
        return f'PeftModel.from_pretrained({auto_class}.from_pretrained("{base}", …), "{folder}")  # see its {CARD}'

    def _write_template(self, folder: Path) -> None:
        if self.template:
            (folder / TEMPLATE).write_text(self.template, encoding="utf8")


class VllmModule(PeftCopy):
    """The same, where it is one of vLLM's LoRA modules."""

    server = "vLLM"

    def refused(self) -> Iterator[str]:
        """See `PeftCopy`."""
        yield from _beyond_lora(self.read, self.server)
        if self.config.get("rank_pattern") or self.config.get("alpha_pattern"):
            yield "its layers have ranks or scales of their own (rank_pattern, alpha_pattern), which it does not read."
        if self.config.get("r", 0) > VLLM_RANKS[-1]:
            yield f"its rank is {self.config['r']}; vLLM takes up to {VLLM_RANKS[-1]}."

    def command(self, folder: Path) -> str:
        """See `PeftCopy`."""
        rank = next(rank for rank in VLLM_RANKS if rank >= self.config["r"])
        command = f"vllm serve {self.adapter.manifest['base']['model']} --enable-lora --max-lora-rank {rank}"
        template = f" --chat-template {folder / TEMPLATE}" if self.template else ""
        return f"{command} --lora-modules {self.adapter.name}={folder}{template}"


class GgufLora(PeftCopy):
    """One file for llama.cpp."""

    server = "llama.cpp"

    def __init__(self, read: AdapterFiles) -> None:
        check_gguf()
        super().__init__(read)

    @cached_property
    def base(self) -> BaseFiles:
        """The files of its base."""
        files, tuned_on = find_tuned_base(self.adapter), self.adapter.manifest["base"]["fingerprint"]
        if files.fingerprint != tuned_on:
            raise IntegrityError(
                f"{self.adapter} was tuned on '{files.model}' with weights {tuned_on[:12]}…, but that from "
                f"{files.source} has {files.fingerprint[:12]}…."
            )
        return files

    @cached_property
    def base_config(self) -> PretrainedConfig:
        """What its base's configuration says."""
        return AutoConfig.from_pretrained(self.base.folder)

    def refused(self) -> Iterator[str]:
        """See `PeftCopy`."""
        reasons = [*_beyond_lora(self.read, self.server)]
        if self.adapter.manifest["base"]["trust_remote_code"]:
            reasons.append(f"its base comes with Python code of its own, which {self.server} does not run.")
        yield from reasons or refused_by_llama_cpp(self.read, self.base_config)

    def write(self, folder: Path) -> None:
        """See `PeftCopy`."""
        write_gguf(self.read, self.base_config, folder / GGUF)
        self._write_template(folder)

    def command(self, folder: Path) -> str:
        """See `PeftCopy`."""
        template = f" --jinja --chat-template-file {folder / TEMPLATE}" if self.template else ""
        return f"llama-server -m BASE.gguf --lora {folder / GGUF}{template}"


class OllamaModel(GgufLora):
    """That file, and a Modelfile."""

    server = "Ollama"

    def __init__(self, read: AdapterFiles, base_name: str | None = None) -> None:
        super().__init__(read)
        self.base_name = base_name

    @cached_property
    def modelfile(self) -> Modelfile:
        """What is to be written beside it."""
        return Modelfile(self.adapter, self.read.task, load_tokenizer(self.base, whole_text=True), self.base_name)

    @property
    def notes(self) -> tuple[str, ...]:
        """See `PeftCopy`."""
        return tuple(self.modelfile.notes)

    def refused(self) -> Iterator[str]:
        """See `PeftCopy`."""
        reasons = list(super().refused())
        yield from reasons or self.modelfile.refused()

    def write(self, folder: Path) -> None:
        """See `PeftCopy`."""
        write_gguf(self.read, self.base_config, folder / GGUF)
        (folder / MODELFILE).write_text(self.modelfile.text(GGUF), encoding="utf8")

    def command(self, folder: Path) -> str:
        """See `PeftCopy`."""
        return f"ollama create {self.adapter.name} -f {folder / MODELFILE}"


HANDINGS: dict[str, Callable[[AdapterFiles], PeftCopy]] = {"peft": PeftCopy, "vllm": VllmModule, "gguf-lora": GgufLora}


def _beyond_lora(read: AdapterFiles, server: str) -> Iterator[str]:
    """What an adapter has that is more than a plain LoRA of a language model."""
    config: dict[str, Any] = read.config
    if read.task.type != "causal-lm":
        yield f"it is for {read.task.type}; here adapters of causal-lm are handed over."
    if config.get("peft_type") != "LORA":
        yield f"its method is {read.adapter.manifest['method']}; {server} takes LoRA alone."
        return
    if config.get("use_dora"):
        yield "it is a DoRA."
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        yield "it has biases."
    if whole := config.get("modules_to_save"):
        yield f"it holds whole modules: {', '.join(whole)}."
    if config.get("trainable_token_indices"):
        yield f"it has embeddings of its own for some tokens, which {server} does not take; export it --to merged."

"""What others take of a published adapter: plain PEFT, vLLM's `--lora-modules`, llama.cpp's `--lora`, Ollama."""

import json
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from peftlab.base import BaseFiles
from peftlab.errors import IntegrityError
from peftlab.interop.gguf import check_gguf, refused_by_llama_cpp, write_gguf
from peftlab.interop.modelfile import Modelfile
from peftlab.runtime.adapter_files import AdapterFiles
from peftlab.runtime.loaded_base import find_tuned_base
from peftlab.store import CONFIG_FILE, WEIGHTS_FILE
from peftlab.tasks.inputs.text import PlainTextInputs

CARD = "README.md"
TEMPLATE = "chat_template.jinja"
GGUF = "adapter.gguf"
MODELFILE = "Modelfile"
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What its --max-lora-rank may be."""


class PeftExporter:
    """The adapter's PEFT files as they are. `base_name` is what the server has its base under, if it is told."""

    server = "PEFT"

    def __init__(self, read: AdapterFiles, base_name: str | None = None) -> None:
        self.read, self.adapter, self.config, self.base_name = read, read.adapter, read.config, base_name

    @property
    def notes(self) -> tuple[str, ...]:
        """What is otherwise there than here."""
        return ()

    @property
    def template(self) -> str | None:
        """How chats are written for it, if it chats."""
        return self.read.task.state.get("chat_template")

    def refused(self) -> Iterator[str]:
        """Why it cannot be served there: what would be refused, and what would be left out without a word."""
        return iter(())

    def write(self, folder: Path) -> None:
        """All that is needed there."""
        for file in (WEIGHTS_FILE, CARD):
            shutil.copy(self.adapter.folder / file, folder)
        # vLLM wants none, not an empty list
        saved = {**self.config, "modules_to_save": self.config.get("modules_to_save") or None}
        (folder / CONFIG_FILE).write_text(json.dumps(saved, indent=2), encoding="utf8")
        self._write_template(folder)

    def command(self, folder: Path) -> str:
        """How it is used there."""
        auto_class, base = self.read.task.head.auto_class, self.adapter.manifest.base.model
        return f'PeftModel.from_pretrained({auto_class}.from_pretrained("{base}", …), "{folder}")  # see its {CARD}'

    def _write_template(self, folder: Path) -> None:
        if self.template:
            (folder / TEMPLATE).write_text(self.template, encoding="utf8")


class VllmExporter(PeftExporter):
    """The same, where it is one of vLLM's LoRA modules."""

    server = "vLLM"

    def refused(self) -> Iterator[str]:
        """See `PeftExporter`."""
        yield from _beyond_lora(self.read, self.server)
        if self.config.get("rank_pattern") or self.config.get("alpha_pattern"):
            yield "its layers have ranks or scales of their own (rank_pattern, alpha_pattern), which it does not read."
        if self.config.get("r", 0) > VLLM_RANKS[-1]:
            yield f"its rank is {self.config['r']}; vLLM takes up to {VLLM_RANKS[-1]}."

    def command(self, folder: Path) -> str:
        """See `PeftExporter`."""
        rank = next(rank for rank in VLLM_RANKS if rank >= self.config["r"])
        command = f"vllm serve {self.adapter.manifest.base.model} --enable-lora --max-lora-rank {rank}"
        template = f" --chat-template {folder / TEMPLATE}" if self.template else ""
        return f"{command} --lora-modules {self.adapter.name}={folder}{template}"


class GgufExporter(PeftExporter):
    """One file for llama.cpp."""

    server = "llama.cpp"

    def __init__(self, read: AdapterFiles, base_name: str | None = None) -> None:
        check_gguf()
        super().__init__(read, base_name)

    @cached_property
    def base(self) -> BaseFiles:
        """The files of its base."""
        files, tuned_on = find_tuned_base(self.adapter), self.adapter.manifest.base.fingerprint
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
        """See `PeftExporter`."""
        reasons = [*_beyond_lora(self.read, self.server)]
        if self.adapter.manifest.base.trust_remote_code:
            reasons.append(f"its base comes with Python code of its own, which {self.server} does not run.")
        yield from reasons or refused_by_llama_cpp(self.read, self.base_config)

    def write(self, folder: Path) -> None:
        """See `PeftExporter`."""
        write_gguf(self.read, self.base_config, folder / GGUF)
        self._write_template(folder)

    def command(self, folder: Path) -> str:
        """See `PeftExporter`."""
        template = f" --jinja --chat-template-file {folder / TEMPLATE}" if self.template else ""
        return f"llama-server -m BASE.gguf --lora {folder / GGUF}{template}"


class OllamaExporter(GgufExporter):
    """That file, and a Modelfile."""

    server = "Ollama"

    @cached_property
    def modelfile(self) -> Modelfile:
        """What is to be written beside it."""
        return Modelfile(self.adapter, self.read.task, PlainTextInputs.load(self.base), self.base_name)

    @property
    def notes(self) -> tuple[str, ...]:
        """See `PeftExporter`."""
        return tuple(self.modelfile.notes)

    def refused(self) -> Iterator[str]:
        """See `PeftExporter`."""
        reasons = list(super().refused())
        yield from reasons or self.modelfile.refused()

    def write(self, folder: Path) -> None:
        """See `PeftExporter`."""
        write_gguf(self.read, self.base_config, folder / GGUF)
        (folder / MODELFILE).write_text(self.modelfile.text(GGUF), encoding="utf8")

    def command(self, folder: Path) -> str:
        """See `PeftExporter`."""
        return f"ollama create {self.adapter.name} -f {folder / MODELFILE}"


def _beyond_lora(read: AdapterFiles, server: str) -> Iterator[str]:
    """What an adapter has that is more than a plain LoRA of a language model."""
    config = read.config
    if read.task.head.auto_class != "AutoModelForCausalLM":
        yield f"it is for {read.task.type}; here adapters of causal-lm are handed over."
    if config.get("peft_type") != "LORA":
        yield f"its method is {read.adapter.manifest.method}; {server} takes LoRA alone."
        return
    if config.get("use_dora"):
        yield "it is a DoRA."
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        yield "it has biases."
    if whole := config.get("modules_to_save"):
        yield f"it holds whole modules: {', '.join(whole)}."
    if config.get("trainable_token_indices"):
        yield f"it has embeddings of its own for some tokens, which {server} does not take; export it --to merged."


EXPORTERS = {"peft": PeftExporter, "vllm": VllmExporter, "gguf-lora": GgufExporter, "ollama": OllamaExporter}

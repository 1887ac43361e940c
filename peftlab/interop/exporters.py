"""The programs that adapters are exported for, one class each: plain PEFT, vLLM, llama.cpp, Ollama."""

import json
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from transformers import AutoConfig, GenerationConfig, PretrainedConfig

from peftlab.base import BaseFiles
from peftlab.errors import BaseNotFoundError, IntegrityError
from peftlab.interop.generation_files import (
    base_end_tokens,
    exported_generation,
    exported_template,
    save_tokenizer,
)
from peftlab.interop.gguf import check_gguf_installed, unsupported_by_llama_cpp, write_gguf
from peftlab.interop.modelfile import Modelfile
from peftlab.runtime.adapter_files import AdapterFiles
from peftlab.runtime.loaded_base import find_tuned_base
from peftlab.store import CONFIG_FILE, WEIGHTS_FILE
from peftlab.tasks import Feature
from peftlab.tasks.inputs.text import PlainTextInputs, TextInputs

CARD_FILE = "README.md"
TEMPLATE_FILE = "chat_template.jinja"
GGUF_FILE = "adapter.gguf"
MODELFILE = "Modelfile"
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM's --max-lora-rank takes."""


class PeftExporter:
    """Copies the adapter's files for plain PEFT. `base_name` is the base's name in the program, if the user gave it."""

    program = "PEFT"

    def __init__(self, files: AdapterFiles, base_name: str | None = None) -> None:
        self.files, self.adapter, self.config, self.base_name = files, files.adapter, files.config, base_name

    @property
    def base_model(self) -> str:
        """The base that the adapter was tuned on."""
        return self.adapter.manifest.base.model

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the program does differently from peftlab."""
        if self._generates and self.generation is None:
            return (
                f"The base {self.base_model} is not on this machine, so its tokenizer and generation_config.json were "
                "not written: end replies with the tokens that end the adapter's answers.",
            )
        return ()

    @property
    def template(self) -> str | None:
        """The adapter's chat template, if it has one."""
        return exported_template(self.files.task)

    @property
    def _generates(self) -> bool:
        return self.files.task.outputs.generation(Feature({}, labels=None)) is not None

    @cached_property
    def inputs(self) -> TextInputs | None:
        """The base's tokenizer as the task uses it; None if the task generates nothing, or the base is not found."""
        inputs_class = self.files.task.inputs_class
        if not self._generates or not issubclass(inputs_class, TextInputs):
            return None
        try:
            return inputs_class.load(find_tuned_base(self.adapter))
        except (BaseNotFoundError, IntegrityError):
            return None

    @cached_property
    def generation(self) -> GenerationConfig | None:
        """The adapter's settings for generating text, with all end tokens; None where `inputs` is None."""
        if self.inputs is None:
            return None
        folder = find_tuned_base(self.adapter).folder
        base_ends = base_end_tokens(folder, AutoConfig.from_pretrained(folder))
        return exported_generation(self.files.task, self.inputs, base_ends)

    @property
    def end_token_ids(self) -> list[int]:
        """The ids of all tokens that end a text."""
        found = self.generation.eos_token_id if self.generation else None
        return list(found) if found else []

    def unsupported(self) -> Iterator[str]:
        """Yield each reason why the program would refuse the adapter, or silently ignore a part of it."""
        return iter(())

    def write(self, folder: Path) -> None:
        """Write the files that the program needs."""
        for file in (WEIGHTS_FILE, CARD_FILE):
            shutil.copy(self.adapter.folder / file, folder)
        # vLLM refuses an empty list
        config = {**self.config, "modules_to_save": self.config.get("modules_to_save") or None}
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2), encoding="utf8")
        self._write_template(folder)
        if self.inputs and self.generation:
            save_tokenizer(self.files.task, self.inputs, folder)
            self.generation.save_pretrained(folder)

    def command(self, folder: Path) -> str:
        """The command, or Python code, that uses the exported folder."""
        if self.files.task.head.pooling:
            return f"see {folder / CARD_FILE}: its code builds the model with a head that pools, and loads the adapter"
        auto_class = self.files.task.head.auto_class
        base = f'{auto_class}.from_pretrained("{self.base_model}", …)'
        ends = f"; generate(…, eos_token_id={self.end_token_ids})" if self.end_token_ids else ""
        return f'PeftModel.from_pretrained({base}, "{folder}")  # see its {CARD_FILE}{ends}'

    def _write_template(self, folder: Path) -> None:
        if self.template:
            (folder / TEMPLATE_FILE).write_text(self.template, encoding="utf8")


class VllmExporter(PeftExporter):
    """Copies the adapter's files for vLLM, which loads them by --lora-modules."""

    program = "vLLM"

    def unsupported(self) -> Iterator[str]:
        """See `PeftExporter`."""
        yield from _more_than_plain_lora(self.files, self.program)
        if self.config.get("rank_pattern") or self.config.get("alpha_pattern"):
            yield "its layers have different ranks or scales (rank_pattern, alpha_pattern), which vLLM does not read."
        if self.config.get("r", 0) > VLLM_RANKS[-1]:
            yield f"its rank is {self.config['r']}; vLLM takes up to {VLLM_RANKS[-1]}."

    def command(self, folder: Path) -> str:
        """See `PeftExporter`."""
        rank = next(rank for rank in VLLM_RANKS if rank >= self.config["r"])
        template = f" --chat-template {folder / TEMPLATE_FILE}" if self.template else ""
        return (
            f"vllm serve {self.base_model} --enable-lora --max-lora-rank {rank} "
            f"--lora-modules {self.adapter.name}={folder}{template}{self._generation_options(folder)}"
        )

    def _generation_options(self, folder: Path) -> str:
        """The options with which vLLM takes the adapter's settings, and ends with all of its end tokens."""
        if not self.end_token_ids:
            return ""
        ends = json.dumps({"eos_token_id": self.end_token_ids})
        return f" --tokenizer {folder} --generation-config {folder} --override-generation-config '{ends}'"


class GgufExporter(PeftExporter):
    """Writes one GGUF file for llama.cpp."""

    program = "llama.cpp"

    def __init__(self, files: AdapterFiles, base_name: str | None = None) -> None:
        check_gguf_installed()
        super().__init__(files, base_name)

    @cached_property
    def base_files(self) -> BaseFiles:
        """The files of the adapter's base.

        Raises:
            IntegrityError: the base that is found has other weights.
        """
        base_files, tuned = find_tuned_base(self.adapter), self.adapter.manifest.base.fingerprint
        if base_files.fingerprint != tuned:
            raise IntegrityError(
                f"{self.adapter} was tuned on '{base_files.model}' with weights {tuned[:12]}…, but that from "
                f"{base_files.source} has {base_files.fingerprint[:12]}…."
            )
        return base_files

    @cached_property
    def base_config(self) -> PretrainedConfig:
        """The Transformers configuration of the base."""
        return AutoConfig.from_pretrained(self.base_files.folder)

    def unsupported(self) -> Iterator[str]:
        """See `PeftExporter`."""
        reasons = [*_more_than_plain_lora(self.files, self.program)]
        if self.adapter.manifest.base.trust_remote_code:
            reasons.append(f"its base comes with its own Python code, which {self.program} does not run.")
        yield from reasons or unsupported_by_llama_cpp(self.files, self.base_config)

    def write(self, folder: Path) -> None:
        """See `PeftExporter`."""
        write_gguf(self.files, self.base_config, folder / GGUF_FILE)
        self._write_template(folder)

    def command(self, folder: Path) -> str:
        """See `PeftExporter`."""
        template = f" --jinja --chat-template-file {folder / TEMPLATE_FILE}" if self.template else ""
        return f"llama-server -m BASE.gguf --lora {folder / GGUF_FILE}{template}"


class OllamaExporter(GgufExporter):
    """Writes the same GGUF file, and a Modelfile for Ollama."""

    program = "Ollama"

    @cached_property
    def modelfile(self) -> Modelfile:
        """The Modelfile."""
        return Modelfile(self.adapter, self.files.task, PlainTextInputs.load(self.base_files), self.base_name)

    @property
    def warnings(self) -> tuple[str, ...]:
        """See `PeftExporter`."""
        return tuple(self.modelfile.warnings)

    def unsupported(self) -> Iterator[str]:
        """See `PeftExporter`."""
        reasons = list(super().unsupported())
        yield from reasons or self.modelfile.unsupported()

    def write(self, folder: Path) -> None:
        """See `PeftExporter`."""
        write_gguf(self.files, self.base_config, folder / GGUF_FILE)
        (folder / MODELFILE).write_text(self.modelfile.text(GGUF_FILE), encoding="utf8")

    def command(self, folder: Path) -> str:
        """See `PeftExporter`."""
        return f"ollama create {self.adapter.name} -f {folder / MODELFILE}"


EXPORTERS = {"peft": PeftExporter, "vllm": VllmExporter, "gguf-lora": GgufExporter, "ollama": OllamaExporter}


def _more_than_plain_lora(files: AdapterFiles, program: str) -> Iterator[str]:
    """Yield each reason why an adapter is not a plain LoRA of a language model."""
    config, task = files.config, files.task
    if not task.head.is_causal_lm:
        yield f"it is for {task.type}; {program} takes adapters of causal language models only."
    if config.get("peft_type") != "LORA":
        yield f"its method is {files.adapter.manifest.method}; {program} takes LoRA only."
        return
    if config.get("use_dora"):
        yield "it is a DoRA."
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        yield "it has biases."
    if modules := config.get("modules_to_save"):
        yield f"it replaces whole modules: {', '.join(modules)}."
    if config.get("trainable_token_indices"):
        yield f"it has its own embeddings for some tokens, which {program} does not take; export it --to merged."

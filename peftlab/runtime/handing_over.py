"""A published adapter as a folder for others: plain PEFT, or vLLM's `--lora-modules`."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peftlab.errors import IntegrityError
from peftlab.runtime.adapter_files import CONFIG, WEIGHTS
from peftlab.runtime.exporting import appearing, check_empty
from peftlab.store import Adapter, Store

Form = Literal["peft", "vllm"]
CARD = "README.md"
TEMPLATE = "chat_template.jinja"
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What its --max-lora-rank may be."""


@dataclass(frozen=True)
class HandedOver:
    """An adapter's copy in `folder`; `command` shows how it is used there."""

    adapter: Adapter
    folder: Path
    command: str


def hand_over(name: str, folder: str | Path, form: Form, *, store: str | Path = "adapters") -> HandedOver:
    """Copy an adapter's PEFT files, verified, with its chat template where it has one.

    Args:
        name: `name` or `name@version`.
        folder: Must be empty or not be there.
        form: peft, or vllm, whose rules (vllm/lora/peft_helper.py) are checked first.
        store: Folder of the store.

    Raises:
        AdapterNotFoundError: no such adapter.
        IntegrityError: it is damaged, or vLLM would refuse it, or serve something else in its place.
        StoreError: `folder` holds something, or cannot be written.
    """
    adapter, target = Store(store).verify(name), Path(folder)
    config = json.loads((adapter.folder / CONFIG).read_text(encoding="utf8"))
    if form == "vllm" and (reasons := list(_refused_by_vllm(adapter, config))):
        told = "\n".join(f"  {reason}" for reason in reasons)
        raise IntegrityError(f"{adapter} cannot be served by vLLM:\n{told}")
    check_empty(target)
    with appearing(target) as draft:
        _copy(adapter, config, draft)
    command = _vllm_command(adapter, config, target) if form == "vllm" else _peft_command(adapter, target)
    return HandedOver(adapter, target, command)


def _copy(adapter: Adapter, config: dict[str, Any], folder: Path) -> None:
    for file in (WEIGHTS, CARD):
        shutil.copy(adapter.folder / file, folder)
    saved = {**config, "modules_to_save": config.get("modules_to_save") or None}  # vLLM wants none, not an empty list
    (folder / CONFIG).write_text(json.dumps(saved, indent=2), encoding="utf8")
    if template := _template(adapter):
        (folder / TEMPLATE).write_text(template, encoding="utf8")


def _template(adapter: Adapter) -> str | None:
    """How chats are written for it, if it chats."""
    template: str | None = adapter.manifest["task"]["learned"].get("chat_template")
    return template


def _refused_by_vllm(adapter: Adapter, config: dict[str, Any]) -> Iterator[str]:
    """Why it cannot be one of vLLM's LoRA modules: what it would refuse, and what it would leave out without a word."""
    if adapter.manifest["task"]["auto_class"] != "AutoModelForCausalLM":
        yield f"it is for {adapter.manifest['task']['type']}; here adapters of causal-lm are handed over."
    if config.get("peft_type") != "LORA":
        yield f"its method is {adapter.manifest['method']}; vLLM takes LoRA alone."
        return
    if config.get("use_dora"):
        yield "it is a DoRA."
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        yield "it has biases."
    if whole := config.get("modules_to_save"):
        yield f"it holds whole modules: {', '.join(whole)}."
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        yield "its layers have ranks or scales of their own (rank_pattern, alpha_pattern), which vLLM does not read."
    if config["r"] > VLLM_RANKS[-1]:
        yield f"its rank is {config['r']}; vLLM takes up to {VLLM_RANKS[-1]}."


def _vllm_command(adapter: Adapter, config: dict[str, Any], folder: Path) -> str:
    rank = next(rank for rank in VLLM_RANKS if rank >= config["r"])
    command = f"vllm serve {adapter.manifest['base']['model']} --enable-lora --max-lora-rank {rank}"
    template = f" --chat-template {folder / TEMPLATE}" if _template(adapter) else ""
    return f"{command} --lora-modules {adapter.name}={folder}{template}"


def _peft_command(adapter: Adapter, folder: Path) -> str:
    auto_class, base = adapter.manifest["task"]["auto_class"], adapter.manifest["base"]["model"]
    return f'PeftModel.from_pretrained({auto_class}.from_pretrained("{base}", …), "{folder}")  # see its {CARD}'

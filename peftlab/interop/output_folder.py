"""Write a folder that appears only when it is complete."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peftlab.errors import StoreError
from peftlab.store import make_readable


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `target` at the end of the block, and deleted on errors.

    Raises:
        StoreError: `target` exists and is not empty, or cannot be written.
    """
    check_is_new(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error.strerror or error}.") from error
    try:
        yield temporary
        make_readable(temporary)
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_is_new(target: Path) -> None:
    """Raise StoreError unless `target` does not exist or is an empty folder."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise StoreError(f"{target} already exists. Name a new folder, or remove that one first.")

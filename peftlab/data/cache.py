"""The cache folder: what is worth remembering between runs, and never worth failing for."""

import os
import threading
from contextlib import suppress
from pathlib import Path


def cache_folder() -> Path:
    """`$PEFTLAB_CACHE`, or else `~/.cache/peftlab`; it may not be there yet."""
    return Path(os.environ.get("PEFTLAB_CACHE", "~/.cache/peftlab")).expanduser()


def read_cache(name: str) -> bytes | None:
    """What was remembered under a name; None if nothing was, or it cannot be read. Using it keeps it young."""
    file = cache_folder() / name
    try:
        content = file.read_bytes()
    except OSError:
        return None
    with suppress(OSError):
        os.utime(file)
    return content


def write_cache(name: str, content: bytes) -> None:
    """Write a cache file, whole or not at all; best effort: without a writable cache the work is only done again."""
    file = cache_folder() / name
    draft = file.with_name(f"{file.name}.{os.getpid()}-{threading.get_ident()}")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_bytes(content)
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)


def evict_oldest(subfolder: str, limit: int) -> None:
    """Delete the files of a subfolder that were used longest ago, until the others hold at most `limit` bytes."""
    with suppress(OSError):  # another run may be at the same work
        files = [(path.stat(), path) for path in (cache_folder() / subfolder).iterdir()]
        held = 0
        for stat, path in sorted(files, key=lambda item: item[0].st_mtime, reverse=True):
            held += stat.st_size
            if held > limit:
                path.unlink()

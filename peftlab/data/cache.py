"""Files that are kept between runs. Caching is best effort: a cache that cannot be written causes no error."""

import os
import threading
from contextlib import suppress
from pathlib import Path


def cache_folder() -> Path:
    """`$PEFTLAB_CACHE`, or else `~/.cache/peftlab`. It may not exist yet."""
    return Path(os.environ.get("PEFTLAB_CACHE", "~/.cache/peftlab")).expanduser()


def read_cache(name: str) -> bytes | None:
    """The content of a cache file, or None if it is missing or unreadable. Reading marks the file as recently used."""
    file = cache_folder() / name
    try:
        content = file.read_bytes()
    except OSError:
        return None
    with suppress(OSError):
        os.utime(file)
    return content


def write_cache(name: str, content: bytes) -> None:
    """Write a cache file atomically. If the folder is not writable, nothing is written."""
    file = cache_folder() / name
    temporary = file.with_name(f"{file.name}.{os.getpid()}-{threading.get_ident()}")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)


def evict_oldest(subfolder: str, limit: int) -> None:
    """Delete the least recently used files of a subfolder until the rest take at most `limit` bytes."""
    with suppress(OSError):  # another run may delete the same files
        files = [(path.stat(), path) for path in (cache_folder() / subfolder).iterdir()]
        total = 0
        for stat, path in sorted(files, key=lambda item: item[0].st_mtime, reverse=True):
            total += stat.st_size
            if total > limit:
                path.unlink()

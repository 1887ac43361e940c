"""Compressed files, recognized by their first bytes, whatever their names are."""

import bz2
import gzip
import lzma
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peftlab.data.rows import Row, RowError
from peftlab.imports import pyarrow


def _open_zstandard(path: Path) -> Any:
    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")


OPENERS: dict[bytes, tuple[str, Callable[[Path], Any]]] = {
    rb"\x1f\x8b": ("gzip", gzip.open),
    rb"\x28\xb5\x2f\xfd": ("zstd", _open_zstandard),
    rb"\xfd7zXZ\x00": ("xz", lzma.open),
    rb"BZh[1-9]1AY": ("bzip2", bz2.open),
}
"""A pattern of the first bytes of a file → its format, and what opens it."""
SUFFIXES = (".gz", ".gzip", ".zst", ".zstd", ".xz", ".bz2")
ARCHIVES = {b"PK\x03\x04": "a zip archive", b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"Rar!": "a rar archive"}


class CompressionError(ValueError):
    """A file cannot be decompressed; the message says why."""


@contextmanager
def decompressed(path: Path) -> Iterator[Path]:
    """Inside the block, a decompressed copy of a compressed file; else the path itself.

    Raises:
        CompressionError: the file is damaged, or an archive of several files.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(8)
    if archive := next((name for magic, name in ARCHIVES.items() if start.startswith(magic)), None):
        raise CompressionError(f"is {archive}; extract its files first")
    found = next((opener for magic, opener in OPENERS.items() if re.match(magic, start)), None)
    if not found:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / (path.stem if path.suffix.lower() in SUFFIXES else path.name)
        _copy(path, copy, *found)
        yield copy


def _copy(path: Path, copy: Path, name: str, opener: Callable[[Path], Any]) -> None:
    try:
        with opener(path) as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise CompressionError(f"is damaged {name} data: {error}") from None


def with_location(row: Row | RowError, copy: Path, path: Path) -> Row | RowError:
    """A row of a decompressed copy, with its place in the original file."""
    if isinstance(row, RowError):
        return type(row)(str(row).replace(str(copy), str(path), 1))
    return Row(row.fields, row.where.replace(str(copy), str(path), 1))

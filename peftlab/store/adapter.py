"""A published adapter, and the version that a name refers to."""

from dataclasses import dataclass
from pathlib import Path

from peftlab.store.manifest import Manifest
from peftlab.tasks import Task


@dataclass(frozen=True)
class Adapter:
    """A published adapter: its folder and its manifest."""

    name: str
    version: int
    folder: Path
    manifest: Manifest

    @property
    def task(self) -> Task:
        """The adapter's task, with its labels.

        Raises:
            IntegrityError: this version of peftlab does not know the task.
        """
        return self.manifest.task.build()

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.stat().st_size for file in self.folder.iterdir())

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class AdapterVersion:
    """The published version that a reference was resolved to.

    `stamp` is the inode and modification time of the manifest: it differs if the same version is published again.
    """

    name: str
    version: int
    stamp: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

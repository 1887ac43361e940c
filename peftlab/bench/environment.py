"""When, where and with what something was measured: a number without them says little."""

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime

VERSIONS_OF = ("peftlab", "torch", "transformers", "peft")


@dataclass(frozen=True)
class Conditions:
    """The date (UTC), the versions that matter, the machine, and how many threads were allowed."""

    date: str
    versions: dict[str, str]
    machine: str
    cores: int
    threads: str

    def __str__(self) -> str:
        versions = ", ".join(f"{package} {version}" for package, version in self.versions.items())
        return f"{self.date} · {versions} · {self.machine}, {self.cores} cores, OMP_NUM_THREADS {self.threads}"


def conditions() -> Conditions:
    """Those of this moment."""
    return Conditions(
        date=datetime.now(UTC).date().isoformat(),
        versions={package: importlib.metadata.version(package) for package in VERSIONS_OF},
        machine=f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
        cores=os.cpu_count() or 1,
        threads=os.environ.get("OMP_NUM_THREADS", "not set"),
    )

"""The date, the machine and the package versions of a benchmark."""

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime

PACKAGES = ("peftlab", "torch", "transformers", "peft")


@dataclass(frozen=True)
class BenchmarkEnvironment:
    """The date (UTC), package versions, machine, number of cores, and the value of OMP_NUM_THREADS."""

    date: str
    versions: dict[str, str]
    machine: str
    cores: int
    threads: str

    def __str__(self) -> str:
        versions = ", ".join(f"{package} {version}" for package, version in self.versions.items())
        return f"{self.date} · {versions} · {self.machine}, {self.cores} cores, OMP_NUM_THREADS {self.threads}"


def benchmark_environment() -> BenchmarkEnvironment:
    """Describe the environment of this process."""
    return BenchmarkEnvironment(
        date=datetime.now(UTC).date().isoformat(),
        versions={package: importlib.metadata.version(package) for package in PACKAGES},
        machine=f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
        cores=os.cpu_count() or 1,
        threads=os.environ.get("OMP_NUM_THREADS", "not set"),
    )

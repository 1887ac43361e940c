"""One command in a process of its own: its whole wall time, imports included, and its peak memory.

A process counts the memory of whoever starts it until it runs its own program, so measure from one that is small: none
that has imported torch.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from peftlab.errors import PeftlabError

TOLD_LINES = 15  # of a failed command's last words
CALL = """\
import importlib, json, sys
module, name, given = sys.argv[1:]
value = getattr(importlib.import_module(module), name)(**json.loads(given))
sys.stdout.write("\\n" + json.dumps(value))
"""


@dataclass(frozen=True)
class Measured:
    """What a command took; `peak_bytes` is its largest resident set, None where the system does not tell."""

    seconds: float
    peak_bytes: int | None
    output: str
    """What it wrote to standard output."""

    @property
    def value(self) -> Any:
        """The last line of the output, read as JSON."""
        return json.loads(self.output.strip().splitlines()[-1])


def measure(command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Measured:
    """Run `command` to its end, with `environment` added to this process's own.

    Raises:
        PeftlabError: it failed; the message ends with what it said last.
    """
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as faults:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=faults, env={**os.environ, **(environment or {})}
        )
        peak_bytes = _wait(process)
        seconds = time.perf_counter() - began
        output, told = _text(said), _text(faults)
    if process.returncode:
        shown = " ".join(part for part in command if part != CALL)
        raise PeftlabError(f"{shown}\nended with exit code {process.returncode}:\n{_last(told or output)}")
    return Measured(seconds, peak_bytes, output)


def measure_call(module: str, name: str, *, environment: Mapping[str, str] | None = None, **given: Any) -> Measured:
    """Call a function of a module in a fresh interpreter; arguments and `value` are what JSON can hold.

    Raises:
        PeftlabError: it failed.
    """
    return measure([sys.executable, "-c", CALL, module, name, json.dumps(given)], environment=environment)


def warm_up() -> None:
    """Read the libraries from the disk once, so that what is measured first does not wait for it alone."""
    measure([sys.executable, "-c", "import datasets, peftlab.tuning.train, peftlab.tuning.publish"])


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    """Wait for the end → the peak of this very process, where the system counts it (Windows does not)."""
    try:
        if sys.platform == "win32":
            process.wait()
            return None
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:  # Ctrl-C, above all: leave nothing behind
        process.kill()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # macOS counts bytes, Linux kilobytes


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf8", errors="replace")


def _last(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines()[-TOLD_LINES:])

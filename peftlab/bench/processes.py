"""Run one command in a new process, and measure its wall time (imports included) and its peak memory.

Until a new process runs its own program, it counts the memory of its parent process. So the parent must be small: it
must not have imported torch.
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

MAX_ERROR_LINES = 15  # last lines of a failed command's output that the error message quotes
CALL = """\
import importlib, json, sys
module, name, arguments = sys.argv[1:]
value = getattr(importlib.import_module(module), name)(**json.loads(arguments))
sys.stdout.write("\\n" + json.dumps(value))
"""


@dataclass(frozen=True)
class ProcessResult:
    """Wall time and output of a command; `peak_bytes` is its peak memory, or None if the system does not count it."""

    seconds: float
    peak_bytes: int | None
    output: str
    """The standard output."""

    @property
    def value(self) -> Any:
        """Parse the last line of the output as JSON."""
        return json.loads(self.output.strip().splitlines()[-1])


def run_process(command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> ProcessResult:
    """Run a command to its end, with variables added to the environment of this process.

    Raises:
        PeftlabError: the command failed; the message ends with the last lines of its output.
    """
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env={**os.environ, **(environment or {})}
        )
        peak_bytes = _wait(process)
        seconds = time.perf_counter() - start
        output, errors = _read_text(stdout), _read_text(stderr)
    if process.returncode:
        command_line = " ".join(part for part in command if part != CALL)
        raise PeftlabError(
            f"{command_line}\nended with exit code {process.returncode}:\n{_last_lines(errors or output)}"
        )
    return ProcessResult(seconds, peak_bytes, output)


def call_in_process(
    module: str, name: str, *, environment: Mapping[str, str] | None = None, **arguments: Any
) -> ProcessResult:
    """Call a function of a module in a new interpreter; arguments and result must be JSON values.

    Raises:
        PeftlabError: the call failed.
    """
    return run_process([sys.executable, "-c", CALL, module, name, json.dumps(arguments)], environment=environment)


def warm_up() -> None:
    """Import the libraries once, so that the first measured process does not read them from a cold disk."""
    run_process([sys.executable, "-c", "import datasets, peftlab.tuning.train, peftlab.tuning.publish"])


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    """Wait for the end of a process → its peak memory in bytes, or None on Windows."""
    try:
        if sys.platform == "win32":
            process.wait()
            return None
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:  # mostly Ctrl-C: do not leave the process running
        process.kill()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # macOS counts bytes, Linux kilobytes


def _read_text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf8", errors="replace")


def _last_lines(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines()[-MAX_ERROR_LINES:])

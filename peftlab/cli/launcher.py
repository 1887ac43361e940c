"""`peftlab tune --launch "torchrun …"`: run the same command in several processes, and report their errors once.

The output of the launcher (banners, tracebacks, warnings of each process) goes to a log file. A launched process
writes its error to a folder, and the process that launched it prints the error.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import click

from peftlab import errors
from peftlab.cli.help_layout import Command
from peftlab.errors import PeftlabError, ProcessLostError, RecipeError, TuningInterrupted, ValidationIssue, suggest
from peftlab.store import Store
from peftlab.tuning.checkpoints import resume_hint
from peftlab.tuning.distributed.process_group import ProcessGroup

LAUNCHERS = ("accelerate launch", "torchrun")
ERROR_FOLDER_VARIABLE = "PEFTLAB_LAUNCHED"  # environment variable with the folder of error files
FORWARDED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class LaunchableCommand(Command):
    """A command that other processes can repeat: it stores its arguments as they were typed."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Store and parse the arguments; see `click.Command.parse_args`."""
        ctx.meta["typed_arguments"] = list(args)
        return super().parse_args(ctx, args)


def parse_launcher(_: click.Context, __: click.Parameter, text: str | None) -> list[str] | None:
    """Callback of --launch: split `torchrun --nproc-per-node 2` into words, the first of them an existing program."""
    if text is None:
        return None
    if ProcessGroup.from_environment().world_size > 1:
        raise click.BadParameter("this process was launched itself; omit --launch.")
    try:
        first, *others = shlex.split(text) or [""]
    except ValueError as error:
        raise click.BadParameter(f"'{text}' cannot be read: {error}.") from None
    return [_find_program(first), *(["launch"] if first == "accelerate" and "launch" not in others else []), *others]


def launch_processes(
    launcher: Sequence[str], command: str, typed_arguments: Sequence[str], store: str, name: str
) -> None:
    """Run `peftlab COMMAND` in the processes that a launcher starts, with the typed arguments except --launch.

    Args:
        launcher: The launcher's program and its arguments.
        command: The peftlab command to run.
        typed_arguments: The arguments of the command as they were typed.
        store, name: The store and the adapter's name, which locate the checkpoints if the run ends early.

    Raises:
        PeftlabError: the run failed; the message is that of the first process that knows the cause.
    """
    folder = Path(tempfile.mkdtemp(prefix="peftlab-launch-"))
    full_command = [*launcher, "-m", "peftlab", command, *_without_launch(typed_arguments)]
    code, stopped = _run_launcher(full_command, folder)
    error = _read_process_errors(folder)
    if error is None and code == 0:
        shutil.rmtree(folder)
    elif stopped and (error is None or isinstance(error, ProcessLostError)):
        shutil.rmtree(folder)
        how = resume_hint(Store(store).run_folder(name))
        raise TuningInterrupted(f"stopped; nothing was published. {how}")
    else:
        raise _explain_failure(error, code, folder / "log", Store(store).run_folder(name))


def is_single_launched_process() -> bool:
    """Return whether --launch was given, but the launcher started only one process."""
    return ERROR_FOLDER_VARIABLE in os.environ and ProcessGroup.from_environment().world_size == 1


def report_to_launcher(error: PeftlabError) -> bool:
    """Write an error to a file for the process that launched this one → whether another process prints it."""
    process_group = ProcessGroup.from_environment()
    if not process_group.is_main and isinstance(error, ProcessLostError | TuningInterrupted):
        return True  # the main process, or the one that ended, reports it
    if ERROR_FOLDER_VARIABLE not in os.environ:
        return False
    file = Path(os.environ[ERROR_FOLDER_VARIABLE]) / f"{process_group.rank}.json"
    file.write_text(json.dumps(_error_to_json(error)), encoding="utf8")
    return True


def report_unexpected_error(error: Exception) -> None:
    """Report an unexpected error to the process that launched this one; the traceback is in the log."""
    if not isinstance(error, click.ClickException | click.exceptions.Exit | click.Abort):
        place = f"unexpected error in process {ProcessGroup.from_environment().rank}"
        report_to_launcher(PeftlabError(f"{place}: {type(error).__name__}: {error}. Please report it."))


def _find_program(name: str) -> str:
    """Return the launcher that is installed with this Python, or else the first one on the PATH."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise click.BadParameter(f"there is no command '{name}' here. {suggest(name, LAUNCHERS, what='Launchers')}")
    return found


def _without_launch(typed: Sequence[str]) -> Iterator[str]:
    words = iter(typed)
    for word in words:
        if word == "--launch":
            next(words, None)
        elif not word.startswith("--launch="):
            yield word


def _run_launcher(command: Sequence[str], folder: Path) -> tuple[int, bool]:
    """Run the launcher → its exit code, and whether this process received a signal to stop, which it forwards."""
    environment = {**os.environ, ERROR_FOLDER_VARIABLE: str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, env=environment, start_new_session=True)
        with _forward_signals(process) as signals:
            return process.wait(), bool(signals)


@contextmanager
def _forward_signals(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Forward the signals received inside the block to a process, and append them to the list that is returned."""
    signals: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        signals.append(number)
        process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in FORWARDED_SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _error_to_json(error: PeftlabError) -> dict[str, Any]:
    issues = [asdict(issue) for issue in error.errors] if isinstance(error, RecipeError) else []
    return {"kind": type(error).__name__, "message": str(error), "errors": issues}


def _error_from_json(plain: Mapping[str, Any]) -> PeftlabError:
    if plain["errors"]:
        return RecipeError(ValidationIssue(**issue) for issue in plain["errors"])
    error: PeftlabError = getattr(errors, plain["kind"])(plain["message"])
    return error


def _read_process_errors(folder: Path) -> PeftlabError | None:
    """Return the first reported error; a ProcessLostError is only a consequence of another one."""
    files = sorted(folder.glob("*.json"), key=lambda file: int(file.stem))
    reported = [_error_from_json(json.loads(file.read_text(encoding="utf8"))) for file in files]
    causes = [error for error in reported if not isinstance(error, ProcessLostError)]
    return next(iter(causes or reported), None)


def _explain_failure(error: PeftlabError | None, code: int, log: Path, run_folder: Path) -> PeftlabError:
    """Return the reported error, or one from the launcher's log, which is then kept."""
    if error is not None and error.exit_code not in (PeftlabError.exit_code, ProcessLostError.exit_code):
        shutil.rmtree(log.parent)
        return error
    log_hint = f"The launcher's output is in {log}"
    if error is not None and not isinstance(error, ProcessLostError):
        return type(error)(f"{error}\n{log_hint}")
    cause = (
        _find_cause_in_log(log.read_text(encoding="utf8", errors="replace"))
        or f"the launcher ended with exit code {code}"
    )
    return ProcessLostError(f"{cause}; nothing was published. {resume_hint(run_folder)}\n{log_hint}")


def _find_cause_in_log(log: str) -> str:
    """Return why the launcher ended, if its log names a killed process or a wrong option; else an empty string."""
    if killed := re.search(r"Root Cause.*?rank\s*:\s*(\d+).*?(SIG[A-Z]+)", log, re.DOTALL):
        return f"process {killed[1]} was killed ({killed[2]}), so the run ended"
    wrong = re.findall(r"^[\w. -]+: error: .+$", log, re.MULTILINE)
    return f"the launcher says: {wrong[-1]}" if wrong else ""

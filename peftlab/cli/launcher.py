"""`peftlab tune --launch "torchrun …"`: the same command in several processes, and their errors told once, in words.

The launcher's own words (banners, tracebacks, warnings of each process) go to a log, which is named where nothing
better is known. What a launched process has to tell, it leaves in a folder for the process that launched it.
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
from peftlab.errors import PeftlabError, ProcessLostError, RecipeError, TuningInterrupted, ValidationIssue, suggest
from peftlab.store import Store
from peftlab.tuning.checkpoints import resume_hint
from peftlab.tuning.distributed.process_group import ProcessGroup

LAUNCHERS = ("accelerate launch", "torchrun")
LEFT_IN = "PEFTLAB_LAUNCHED"  # the folder in which launched processes leave their errors
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Launched(click.Command):
    """A command that can be launched: it remembers its arguments as they were typed."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; see `click.Command.parse_args`."""
        ctx.meta["typed"] = list(args)
        return super().parse_args(ctx, args)


def launcher_words(_: click.Context, __: click.Parameter, text: str | None) -> list[str] | None:
    """`torchrun --nproc-per-node 2` → its words, the first of them a program that is there."""
    if text is None:
        return None
    if ProcessGroup.from_environment().world_size > 1:
        raise click.BadParameter("this process was launched itself; take --launch out.")
    try:
        first, *others = shlex.split(text) or [""]
    except ValueError as error:
        raise click.BadParameter(f"'{text}' cannot be read: {error}.") from None
    return [_program(first), *(["launch"] if first == "accelerate" and "launch" not in others else []), *others]


def launch(words: Sequence[str], command: str, typed: Sequence[str], store: str, name: str) -> None:
    """Run `peftlab COMMAND` with the arguments `typed`, but for --launch, in the processes that a launcher starts.

    `store` and `name` tell where the checkpoints will be, should it end early.

    Raises:
        PeftlabError: what the launched processes could not do; the first of them that knows why tells it.
    """
    folder = Path(tempfile.mkdtemp(prefix="peftlab-launch-"))
    started = [*words, "-m", "peftlab", command, *_without_launch(typed)]
    code, stopped = _run(started, folder)
    error = _left_behind(folder)
    if error is None and code == 0:
        shutil.rmtree(folder)
    elif stopped and (error is None or isinstance(error, ProcessLostError)):
        shutil.rmtree(folder)
        how = resume_hint(Store(store).run_folder(name))
        raise TuningInterrupted(f"stopped; nothing was published. {how}")
    else:
        raise _explained(error, code, folder / "log", Store(store).run_folder(name))


def launched_alone() -> bool:
    """Whether `launch` ran, but its launcher started a single process."""
    return LEFT_IN in os.environ and ProcessGroup.from_environment().world_size == 1


def hand_over(error: PeftlabError) -> bool:
    """Leave the error to the process that launched this one, if one did; whether nothing is left to tell here."""
    process_group = ProcessGroup.from_environment()
    if not process_group.is_main and isinstance(error, ProcessLostError | TuningInterrupted):
        return True  # the first process, or the one that ended, tells it
    if LEFT_IN not in os.environ:
        return False
    file = Path(os.environ[LEFT_IN]) / f"{process_group.rank}.json"
    file.write_text(json.dumps(_plain(error)), encoding="utf8")
    return True


def hand_over_fault(fault: Exception) -> None:
    """Leave word of an unforeseen fault, whose traceback goes to the launcher's log."""
    if not isinstance(fault, click.ClickException | click.exceptions.Exit | click.Abort):
        place = f"process {ProcessGroup.from_environment().rank} met an unforeseen fault"
        hand_over(PeftlabError(f"{place}: {type(fault).__name__}: {fault}. Please report it."))


def _program(name: str) -> str:
    """The launcher that came with this Python, or else the first on the PATH."""
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


def _run(command: Sequence[str], folder: Path) -> tuple[int, bool]:
    """The exit code of the launcher, and whether this process was asked to stop, which it passes on."""
    environment = {**os.environ, LEFT_IN: str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, env=environment, start_new_session=True)
        with _forwarding(process) as signals:
            return process.wait(), bool(signals)


@contextmanager
def _forwarding(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Pass on the signals that come inside the block; the list of them grows."""
    signals: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        signals.append(number)
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in FORWARDED}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _plain(error: PeftlabError) -> dict[str, Any]:
    issues = [asdict(issue) for issue in error.errors] if isinstance(error, RecipeError) else []
    return {"kind": type(error).__name__, "message": str(error), "errors": issues}


def _from_plain(plain: Mapping[str, Any]) -> PeftlabError:
    if plain["errors"]:
        return RecipeError(ValidationIssue(**issue) for issue in plain["errors"])
    error: PeftlabError = getattr(errors, plain["kind"])(plain["message"])
    return error


def _left_behind(folder: Path) -> PeftlabError | None:
    """What the first process that knows tells; that another one ended is no more than a consequence."""
    files = sorted(folder.glob("*.json"), key=lambda file: int(file.stem))
    told = [_from_plain(json.loads(file.read_text(encoding="utf8"))) for file in files]
    causes = [error for error in told if not isinstance(error, ProcessLostError)]
    return next(iter(causes or told), None)


def _explained(error: PeftlabError | None, code: int, log: Path, run_folder: Path) -> PeftlabError:
    """What a process told, or what can be learned from the launcher's log, which then is kept."""
    if error is not None and error.exit_code not in (PeftlabError.exit_code, ProcessLostError.exit_code):
        shutil.rmtree(log.parent)
        return error
    kept = f"The launcher's own words are in {log}"
    if error is not None and not isinstance(error, ProcessLostError):
        return type(error)(f"{error}\n{kept}")
    what = _read_in(log.read_text(encoding="utf8", errors="replace")) or f"the launcher ended with exit code {code}"
    return ProcessLostError(f"{what}; nothing was published. {resume_hint(run_folder)}\n{kept}")


def _read_in(log: str) -> str:
    """Why the launcher ended, where its log says so in a form that we know: a killed process, a wrong option."""
    if killed := re.search(r"Root Cause.*?rank\s*:\s*(\d+).*?(SIG[A-Z]+)", log, re.DOTALL):
        return f"process {killed[1]} was killed ({killed[2]}), and the run with it"
    wrong = re.findall(r"^[\w. -]+: error: .+$", log, re.MULTILINE)
    return f"the launcher says: {wrong[-1]}" if wrong else ""

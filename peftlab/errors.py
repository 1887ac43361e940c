"""Every error a user can meet: what is wrong, where, what to do next, and the exit code of the command.

PeftlabError              1   anything below, and the last resort
├── RecipeError           2   the recipe, an override or the data is wrong; lists every problem at once
├── NotFoundError         3   something named is not there
│   ├── BaseNotFoundError
│   ├── AdapterNotFoundError
│   ├── DeviceNotFoundError
│   └── PackageNotFoundError
├── IntegrityError        4   an adapter is damaged, or does not fit the base it is asked to sit on
├── MemoryBudgetError     5   an adapter is larger than what adapters may take of memory
├── StoreError            5   the store cannot be written
├── ProcessLostError      6   another process of the same run has ended, or the launcher failed
├── TuningDiverged        7   training left the numbers behind, before there was anything to keep
└── TuningInterrupted   130   the user stopped the run
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

LISTED = 15  # names told after a miss


class PeftlabError(Exception):
    """Base of every error peftlab raises on purpose."""

    exit_code = 1


class NotFoundError(PeftlabError):
    """Something named by the user does not exist."""

    exit_code = 3


class BaseNotFoundError(NotFoundError):
    """No base model under that name in any of the places looked in."""


class AdapterNotFoundError(NotFoundError):
    """No such adapter, or no such version of it, in the store."""


class DeviceNotFoundError(NotFoundError):
    """This machine has no such accelerator, or this torch cannot use it."""


class PackageNotFoundError(NotFoundError):
    """What is asked for needs a package that is not installed; the sentence has the command."""


class IntegrityError(PeftlabError):
    """A published adapter differs from what was published, or from the base it is loaded onto."""

    exit_code = 4


class StoreError(PeftlabError):
    """The store cannot be written: no permission, no space, or another run holds it."""

    exit_code = 5


class MemoryBudgetError(PeftlabError):
    """An adapter is larger than all that adapters may take of memory."""

    exit_code = 5


class ProcessLostError(PeftlabError):
    """A run in several processes cannot go on, because one of them ended; the sentence says how to go on."""

    exit_code = 6


class TuningDiverged(PeftlabError):
    """The weights were no numbers any more before an epoch was scored; the sentence says what to change."""

    exit_code = 7


class TuningInterrupted(PeftlabError):
    """The user stopped a tuning run; the sentence says how to go on."""

    exit_code = 130


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a recipe or its data.

    `where` is `file:line` (or the override as typed), `key` the dotted path in the recipe, or whose row it is (an
    adapter's name), `hint` what to do next.
    """

    message: str
    where: str = ""
    key: str = ""
    hint: str = ""

    def __str__(self) -> str:
        place = "  ".join(part for part in (self.where, self.key) if part)
        sentence = f"{self.message} {self.hint}".strip()
        return f"{place}: {sentence}" if place else sentence


class RecipeError(PeftlabError):
    """A recipe or its data cannot be used; `problems` holds everything found, in the order of the file."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        count = len(self.problems)
        title = "1 problem" if count == 1 else f"{count} problems"
        super().__init__("\n".join([title, *(f"  {problem}" for problem in self.problems)]))


@dataclass
class Problems:
    """Collects problems so that all are told at once: leaving the `with` block raises them as one RecipeError.

    `places` maps dotted recipe keys to where they were written: `file:line`, or the override as typed.
    """

    found: list[Problem] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    unguessed: set[str] = field(default_factory=set)
    """Keys that something meaningless stands in for while the rest is checked."""

    def add(self, message: str, *, where: str = "", key: str = "", hint: str = "") -> None:
        """Note a problem and go on looking for more; without `where`, the place of `key` is told."""
        self.found.append(Problem(message, where or self.place(key), key, hint))

    def tells(self, key: str) -> bool:
        """Whether a problem with `key` was noted."""
        return any(problem.key == key for problem in self.found)

    def move(self, key: str, renamed: str) -> None:
        """Know what was written at `key`, and inside it, under another name as well."""
        for old in [old for old in self.places if old == key or old.startswith(f"{key}.")]:
            self.places[renamed + old.removeprefix(key)] = self.places[old]

    def place(self, key: str) -> str:
        """Where `key`, or else the nearest section around it, was written; empty where nobody wrote it."""
        while key and key not in self.places:
            key = key.rpartition(".")[0]
        return self.places.get(key, "")

    def stop(self) -> None:
        """Raise what was found so far, if anything: nothing sensible can be checked beyond this point."""
        if self.found:
            raise RecipeError(self.found)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self.stop()


@contextmanager
def as_problem(message: str, *kinds: type[Exception], key: str) -> Iterator[None]:
    """Inside the block, an error of these kinds is a problem with `key`: `message`, and what the error says.

    Raises:
        RecipeError: there was one.
    """
    try:
        yield
    except kinds as error:
        with Problems() as problems:
            problems.add(f"{message}: {error}", key=key)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` most likely meant, or None."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def suggest(name: str, known: Iterable[str], *, what: str = "Known") -> str:
    """A sentence for a miss: the nearest known name first, then all of them, or the first few of very many."""
    names = sorted(known)
    close = nearest(name, names)
    meant = f"Did you mean '{close}'? " if close else ""
    listed = ", ".join(names[:LISTED]) or "none"
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{meant}{what}: {listed}{more}."

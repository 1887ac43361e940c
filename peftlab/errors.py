"""Every error that a user can see, with the exit code of the command.

Messages say what is wrong, where, and what to do.

PeftlabError              1   base class of all errors
├── RecipeError           2   the recipe, an override or the data is wrong; lists everything at once
├── NotFoundError         3   something that the user named does not exist
│   ├── BaseNotFoundError
│   ├── AdapterNotFoundError
│   ├── DeviceNotFoundError
│   └── PackageNotFoundError
├── PluginError           1   a method or task of another package cannot be used
├── IntegrityError        4   an adapter is damaged, or does not fit its base model
├── MemoryBudgetError     5   an adapter exceeds the memory for adapters
├── StoreError            5   the store cannot be written
├── ProcessLostError      6   another process of the same run has ended, or the launcher failed
├── TuningDiverged        7   the weights became NaN or infinite before the first epoch was scored
├── NoBetterThanMajority  8   the trained adapter scores no better than the most frequent answer
└── TuningInterrupted   130   the user stopped the run
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

MAX_SUGGESTIONS = 15  # names listed after an unknown name


class PeftlabError(Exception):
    """Base of every error peftlab raises on purpose."""

    exit_code = 1
    exit_reason = "an unexpected error, or a question answered with no"
    """What the exit code means, as `peftlab --help` lists it."""


class NotFoundError(PeftlabError):
    """Something named by the user does not exist."""

    exit_code = 3
    exit_reason = "an adapter, a base model, a device or a package was not found"


class BaseNotFoundError(NotFoundError):
    """No base model of that name in any of the places searched."""


class AdapterNotFoundError(NotFoundError):
    """The store has no such adapter, or no such version of it."""


class DeviceNotFoundError(NotFoundError):
    """This machine has no such device, or the installed torch cannot use it."""


class PackageNotFoundError(NotFoundError):
    """A required package is not installed; the message has the command that installs it."""


class PluginError(PeftlabError):
    """A method or task of another installed package cannot be imported, or is not a valid record."""


class IntegrityError(PeftlabError):
    """The files of an adapter were changed, or do not fit the base model."""

    exit_code = 4
    exit_reason = "an adapter is damaged, or does not fit its base model"


class StoreError(PeftlabError):
    """The store cannot be written: no permission, no space, or another run holds it."""

    exit_code = 5
    exit_reason = "the store or the disk cannot be written"


class MemoryBudgetError(PeftlabError):
    """One adapter is larger than the memory budget for all adapters."""

    exit_code = 5
    exit_reason = "an adapter exceeds --memory"


class ProcessLostError(PeftlabError):
    """A process of a distributed run ended unexpectedly; the message says how to resume the run."""

    exit_code = 6
    exit_reason = "a process of a distributed run ended unexpectedly"


class TuningDiverged(PeftlabError):
    """The weights became NaN or infinite before an epoch was scored; the message says what to change."""

    exit_code = 7
    exit_reason = "the weights became NaN or infinite before an epoch was scored"


class NoBetterThanMajority(PeftlabError):
    """The trained adapter scores no better than the most frequent answer, and was not published."""

    exit_code = 8
    exit_reason = "the trained adapter is no better than the most frequent answer; --publish-anyway publishes it"


class TuningInterrupted(PeftlabError):
    """The user stopped a tuning run; the message says how to resume it."""

    exit_code = 130
    exit_reason = "stopped by Ctrl-C"


@dataclass(frozen=True)
class ValidationIssue:
    """One error in a recipe or its data.

    `where` is `file:line`, or the override as typed. `key` is the dotted key in the recipe, or the adapter that the row
    belongs to. `hint` says what to do next.
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
    """A recipe or its data cannot be used; `errors` lists everything that was found, in the order of the file."""

    exit_code = 2
    exit_reason = "the command, the recipe or the data is wrong"

    def __init__(self, errors: Iterable[ValidationIssue]) -> None:
        self.errors = list(errors)
        count = len(self.errors)
        title = "1 problem" if count == 1 else f"{count} problems"
        super().__init__("\n".join([title, *(f"  {issue}" for issue in self.errors)]))


@dataclass
class ErrorCollector:
    """Collects validation issues. Leaving the `with` block raises all of them as one RecipeError."""

    issues: list[ValidationIssue] = field(default_factory=list)
    locations: dict[str, str] = field(default_factory=dict)
    """Dotted recipe key → where it was written: `file:line`, or the override as typed."""
    placeholders: set[str] = field(default_factory=set)
    """Keys whose value is a placeholder, so that the rest of the recipe can be checked."""

    def add(self, message: str, *, where: str = "", key: str = "", hint: str = "") -> None:
        """Record an issue. Without `where`, its place is where `key` was written."""
        self.issues.append(ValidationIssue(message, where or self.location(key), key, hint))

    def has_error_at(self, key: str) -> bool:
        """Whether an issue with `key` was recorded."""
        return any(issue.key == key for issue in self.issues)

    def add_alias(self, key: str, alias: str) -> None:
        """Use the locations of `key` and of the keys inside it for `alias` as well."""
        for old in [old for old in self.locations if old == key or old.startswith(f"{key}.")]:
            self.locations[alias + old.removeprefix(key)] = self.locations[old]

    def location(self, key: str) -> str:
        """Where `key`, or else the nearest section around it, was written; empty if it was written nowhere."""
        while key and key not in self.locations:
            key = key.rpartition(".")[0]
        return self.locations.get(key, "")

    def raise_if_any(self) -> None:
        """Raise the issues recorded so far, if there are any, because no further check makes sense.

        Raises:
            RecipeError: at least one issue was recorded.
        """
        if self.issues:
            raise RecipeError(self.issues)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self.raise_if_any()


@contextmanager
def reraise_as_recipe_error(message: str, *types: type[Exception], key: str) -> Iterator[None]:
    """Turn an error of these `types` inside the block into an issue with `key`: `message`, then the error's own text.

    Raises:
        RecipeError: the block raised such an error.
    """
    try:
        yield
    except types as error:
        with ErrorCollector() as errors:
            errors.add(f"{message}: {error}", key=key)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most similar to `name`, or None."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def suggest(name: str, known: Iterable[str], *, what: str = "Known") -> str:
    """A hint after an unknown name: the most similar known name, then the known names, at most `MAX_SUGGESTIONS`."""
    names = sorted(known)
    close = nearest(name, names)
    meant = f"Did you mean '{close}'? " if close else ""
    listed = ", ".join(names[:MAX_SUGGESTIONS]) or "none"
    more = f" and {len(names) - MAX_SUGGESTIONS} more" if len(names) > MAX_SUGGESTIONS else ""
    return f"{meant}{what}: {listed}{more}."

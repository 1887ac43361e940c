"""Serving many adapters: mixed batches beside the bare base, and the time that an adapter takes to come."""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from operator import truediv
from typing import Any

from pydantic import TypeAdapter, ValidationError

from peftlab.bench.processes import measure_call
from peftlab.errors import RecipeError, ValidationIssue
from peftlab.recipe import BaseSection, MethodSection

BARE = "bare base"
SERVED = "peftlab.bench.runtime_worker"
TURNS = 3  # processes for each number of adapters in memory, taken in turn
Seconds = dict[str, float]


@dataclass(frozen=True)
class BatchTime:
    """One batch in one way, by rows of `adapters` different adapters; `ratio` is to the bare base with one head.

    Both numbers are medians over rounds in which every way took one batch.
    """

    way: str
    adapters: int
    ratio: float
    seconds: float

    @property
    def case(self) -> str:
        """`peftlab, 4 adapters`."""
        return f"{self.way}, {self.adapters} adapters" if self.adapters else self.way


@dataclass(frozen=True)
class LoadTime:
    """Medians of bringing an adapter from disk and of finding one that is ready, with `registered` adapters loaded.

    `from_disk` is into memory that another adapter has left, `growing` into memory that the process never had, which
    the system must give first; `ratio` is of `from_disk` to that with the first number of adapters.
    """

    registered: int
    from_disk: float
    growing: float
    ratio: float
    ready: float


def time_batches(
    base: str,
    *,
    counts: Sequence[int] = (1, 4, 16, 32),
    method: dict[str, Any] | None = None,
    rows: int = 32,
    tokens: int = 64,
    rounds: int = 15,
    precision: str = "fp32",
    plain: bool = True,
    device: str = "auto",
) -> list[BatchTime]:
    """A mixed batch of random tokens through random adapters: peftlab, and plain PEFT with `adapter_names`.

    Measured in a fresh process. The bare base is in the same precision, with one head.

    Args:
        base: As `base.model` of a recipe.
        counts: How many different adapters the rows of a batch have.
        method: As `method` of a recipe; LoRA with r=8 on every Linear without.
        rows, tokens: Of the batch.
        rounds: How often each way takes a batch, after two that do not count.
        precision: fp32 or bf16.
        plain: Whether to measure plain PEFT as well, which can do it for LoRA.
        device: auto, cpu, cuda or mps.

    Raises:
        BaseNotFoundError: the base model is nowhere.
        RecipeError: the method cannot be put on it.
        PeftlabError: the process failed.
    """
    given: dict[str, Any] = {"counts": list(counts), "rows": rows, "tokens": tokens, "rounds": rounds, "plain": plain}
    place: dict[str, Any] = {**_checked(base, method), "device": device}
    measured = measure_call(SERVED, "batch_times", **place, **given, precision=precision)
    return [BatchTime(**told) for told in measured.value]


def time_loading(
    base: str,
    *,
    registered: Sequence[int] = (1, 100, 1000),
    method: dict[str, Any] | None = None,
    rounds: int = 30,
    device: str = "auto",
) -> list[LoadTime]:
    """How long an adapter takes to come, with few and with many others in memory.

    Each number of adapters has processes of its own, three of them, which take turns with those of the others; `rounds`
    loads in each. Other arguments and errors are as for `time_batches`.
    """
    checked, most = _checked(base, method), max(registered)
    told: dict[int, list[Seconds]] = {count: [] for count in registered}
    with tempfile.TemporaryDirectory() as store:
        measure_call(SERVED, "publish", **checked, store=store, loaded=most, fresh=rounds)
        for _ in range(TURNS):
            for count in registered:
                measured = measure_call(SERVED, "load_times", store=store, loaded=count, fresh=rounds, device=device)
                told[count].append(measured.value)
    return [_load_time(count, told[count], told[registered[0]]) for count in registered]


def _load_time(registered: int, told: list[Seconds], first: list[Seconds]) -> LoadTime:
    """Medians over processes, of medians in each."""
    seconds = {case: [turn[case] for turn in told] for case in told[0]}
    ratio = statistics.median(map(truediv, seconds["from_disk"], (turn["from_disk"] for turn in first)))
    return LoadTime(registered, **{case: statistics.median(took) for case, took in seconds.items()}, ratio=ratio)


def _checked(base: str, method: dict[str, Any] | None) -> dict[str, Any]:
    """What cannot be measured is told in this process, in words."""
    from peftlab.base import find_base

    find_base(BaseSection(model=base))
    given = method or {"type": "lora", "r": 8}
    try:
        TypeAdapter(MethodSection).validate_python(given)
    except ValidationError as error:
        raise RecipeError([_problem(wrong) for wrong in error.errors()]) from None
    return {"base": base, "method": given}


def _problem(wrong: Any) -> ValidationIssue:
    return ValidationIssue(f"{wrong['msg']}.", key=".".join(["method", *map(str, wrong["loc"][1:])]))

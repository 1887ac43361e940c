"""Time mixed batches of many adapters, compared with the base model alone, and the loading of adapters."""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from operator import truediv
from typing import Any

from pydantic import ValidationError

from peftlab.base import find_base
from peftlab.bench.processes import call_in_process
from peftlab.errors import RecipeError, ValidationIssue
from peftlab.recipe import BaseSection, parse_method

BASE_MODEL = "bare base"  # the key of the base model alone in --json and in result files
WORKER = "peftlab.bench.runtime_worker"
TURNS = 3  # processes for each number of adapters in memory; the numbers alternate
Seconds = dict[str, float]


@dataclass(frozen=True)
class BatchTime:
    """The time of one batch in one setup (`way`), with rows of `adapters` different adapters.

    `ratio` is relative to the base model with one head. `seconds` and `ratio` are medians over rounds in which every
    setup ran one batch.
    """

    way: str
    adapters: int
    ratio: float
    seconds: float

    @property
    def case(self) -> str:
        """The key in --json, such as `peftlab, 4 adapters`."""
        return f"{self.way}, {self.adapters} adapters" if self.adapters else self.way


@dataclass(frozen=True)
class LoadTime:
    """Median seconds of loading an adapter while `registered` adapters are in memory.

    `from_disk` loads into memory that another adapter has freed, `growing` into newly allocated memory, and `ready`
    looks up an adapter that is already loaded. `ratio` is `from_disk` ÷ `from_disk` for the first number of adapters.
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
    num_repeats: int = 15,
    precision: str = "fp32",
    plain: bool = True,
    device: str = "auto",
) -> list[BatchTime]:
    """Time mixed batches of random tokens with random adapters: peftlab, and plain PEFT with `adapter_names`.

    The measurement runs in a new process. The base model alone has the same precision and one head.

    Args:
        base: The base model, as `base.model` of a recipe.
        counts: Numbers of different adapters in a batch.
        method: The method, as `method` of a recipe; None means LoRA with r=8.
        rows, tokens: Shape of the batch.
        num_repeats: Number of measured batches of each setup, after two warm-up batches.
        precision: fp32 or bf16.
        plain: Whether to measure plain PEFT too, where it can mix adapters of the method.
        device: auto, cpu, cuda or mps.

    Raises:
        BaseNotFoundError: the base model was not found.
        RecipeError: the method section is wrong.
        PeftlabError: the process failed.
    """
    settings: dict[str, Any] = {**_check_settings(base, method), "device": device}
    plain = plain and _is_mixed_by_peft(settings["method"])
    sizes: dict[str, Any] = {
        "counts": list(counts),
        "rows": rows,
        "tokens": tokens,
        "num_repeats": num_repeats,
        "plain": plain,
    }
    result = call_in_process(WORKER, "batch_times", **settings, **sizes, precision=precision)
    return [BatchTime(**fields) for fields in result.value]


def time_loading(
    base: str,
    *,
    registered: Sequence[int] = (1, 100, 1000),
    method: dict[str, Any] | None = None,
    num_repeats: int = 30,
    device: str = "auto",
) -> list[LoadTime]:
    """Time the loading of an adapter, with few and with many other adapters in memory.

    Each number of adapters is measured in three new processes with `num_repeats` loads each; the numbers alternate.
    Other arguments and errors are those of `time_batches`.
    """
    settings, maximum = _check_settings(base, method), max(registered)
    times: dict[int, list[Seconds]] = {count: [] for count in registered}
    with tempfile.TemporaryDirectory() as store:
        call_in_process(WORKER, "publish", **settings, store=store, loaded=maximum, fresh=num_repeats)
        for _ in range(TURNS):
            for count in registered:
                result = call_in_process(
                    WORKER, "load_times", store=store, loaded=count, fresh=num_repeats, device=device
                )
                times[count].append(result.value)
    return [_load_time(count, times[count], times[registered[0]]) for count in registered]


def _load_time(registered: int, times: list[Seconds], first: list[Seconds]) -> LoadTime:
    """Combine the medians of several processes."""
    seconds = {case: [turn[case] for turn in times] for case in times[0]}
    ratio = statistics.median(map(truediv, seconds["from_disk"], (turn["from_disk"] for turn in first)))
    return LoadTime(registered, **{case: statistics.median(values) for case, values in seconds.items()}, ratio=ratio)


def _check_settings(base: str, method: dict[str, Any] | None) -> dict[str, Any]:
    """Check the base model and the method before a process starts → the arguments of the worker."""
    find_base(BaseSection(model=base))
    section = method or {"type": "lora", "r": 8}
    try:
        parse_method(section)
    except ValidationError as error:
        raise RecipeError([_method_issue(details) for details in error.errors()]) from None
    return {"base": base, "method": section}


def _is_mixed_by_peft(method: dict[str, Any]) -> bool:
    section = parse_method(method)
    return section.info_of(section.type).peft_supports_mixed_batches


def _method_issue(details: Any) -> ValidationIssue:
    return ValidationIssue(f"{details['msg']}.", key=".".join(["method", *map(str, details["loc"][1:])]))

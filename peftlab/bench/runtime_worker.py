"""Time batches of many adapters, and loads, in turn; runs in its own process."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
import transformers
from peft import PeftModel

from peftlab.base import head_config
from peftlab.bench.random_adapters import publish_random
from peftlab.bench.runtime import BASE_MODEL
from peftlab.recipe import BaseSection, parse_method
from peftlab.runtime import Bank
from peftlab.runtime.forward import forward_rows
from peftlab.runtime.options import DTYPES
from peftlab.store import Store
from peftlab.tasks.text_classification import TextClassificationTask

Call = Callable[[], Any]
LABELS = ["one", "two", "three"]
WARM_UP = 2


def batch_times(
    base: str,
    method: dict[str, Any],
    counts: list[int],
    rows: int,
    tokens: int,
    num_repeats: int,
    precision: str,
    plain: bool,
    device: str,
) -> list[dict[str, Any]]:
    """Return the fields of a `BatchTime` for each setup and number of adapters; the base model alone comes first."""
    names = _loaded_names(max(counts))
    with _temporary_store(names, base, method) as store, torch.inference_mode():
        bank = _load_bank(store, names, device, precision)
        inputs = bank.base.inputs.random_batch(bank.base.backbone, rows, tokens)
        base_only = _load_plain_model(bank, precision)
        calls: dict[tuple[str, int], Call] = {(BASE_MODEL, 0): lambda: base_only(**inputs)}
        if plain:
            adapted = _load_plain_peft(bank, names, precision)
        for count in counts:
            row_adapters = sorted(names[i * count // rows] for i in range(rows))
            calls["peftlab", count] = _make_peftlab_call(bank, row_adapters, inputs)
            if plain:
                calls["plain PEFT", count] = _make_peft_call(adapted, row_adapters, inputs)
        seconds = _time_in_turn(calls, num_repeats, bank.base.backbone.device)
    return [
        {
            "way": way,
            "adapters": count,
            "ratio": statistics.median(one / other for one, other in zip(values, seconds[BASE_MODEL, 0], strict=True)),
            "seconds": statistics.median(values),
        }
        for (way, count), values in seconds.items()
    ]


def publish(base: str, method: dict[str, Any], store: str, loaded: int, fresh: int) -> None:
    """Publish random adapters for `load_times`: those that are in memory, and those that are loaded."""
    _publish_adapters(Store(store), [*_loaded_names(loaded), *_new_names(fresh)], base, method)


def load_times(store: str, loaded: int, fresh: int, device: str) -> dict[str, float]:
    """Return the medians of a `LoadTime` in this process."""
    bank, names = _load_bank(Store(store), _loaded_names(loaded), device, "fp32"), _new_names(fresh)
    seconds = {
        "growing": [_time(partial(bank.add, name)) for name in names],
        "ready": [_time(partial(bank.is_routed, name)) for name in names],
    }
    for name in names:
        bank.remove(name)
    seconds["from_disk"] = list(_time_loads(bank, names))
    return {case: statistics.median(values[WARM_UP:]) for case, values in seconds.items()}


def _time_loads(bank: Bank, names: list[str]) -> Iterator[float]:
    """Yield the seconds that each adapter takes to load; each one is removed before the next is loaded."""
    for name in names:
        yield _time(partial(bank.add, name))
        bank.remove(name)


def _loaded_names(count: int) -> list[str]:
    return [f"random-{i}" for i in range(count)]


def _new_names(num_repeats: int) -> list[str]:
    return [f"fresh-{i}" for i in range(WARM_UP + num_repeats)]


@contextmanager
def _temporary_store(names: list[str], base: str, method: dict[str, Any]) -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        _publish_adapters(store, names, base, method)
        yield store


def _publish_adapters(store: Store, names: list[str], base: str, method: dict[str, Any]) -> None:
    section = BaseSection(model=base, pooling="cls")  # plain Transformers has the architecture's own head
    publish_random(store, names, section, parse_method(method), TextClassificationTask(labels=LABELS))


def _load_bank(store: Store, names: list[str], device: str, precision: str) -> Bank:
    bank = Bank(store, device=device, precision=cast(Any, precision))
    for name in names:
        bank.add(name)
    return bank


def _make_peftlab_call(bank: Bank, names: list[str], inputs: dict[str, torch.Tensor]) -> Call:
    """Run a batch as the bank does: pin the adapters, run the base model, and run the head of each row."""
    editions = [bank._registry.resolve(name) for name in names]

    def call() -> Any:
        with bank._cache.pinned(set(editions)) as adapters_by_key:
            return forward_rows(
                [adapters_by_key[edition] for edition in editions], inputs, bank.base.router, bank.base.inputs
            )

    return call


def _load_plain_model(bank: Bank, precision: str) -> Any:
    files, config = bank.base.files, head_config(TextClassificationTask(labels=LABELS))
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(files.folder, dtype=DTYPES[precision], **config)
    return model.eval().to(bank.base.backbone.device)


def _load_plain_peft(bank: Bank, names: list[str], precision: str) -> Any:
    first, *others = names
    model = PeftModel.from_pretrained(
        _load_plain_model(bank, precision), bank.adapter(first).folder, adapter_name=first
    )
    for name in others:
        model.load_adapter(bank.adapter(name).folder, adapter_name=name)
    return model.eval()


def _make_peft_call(model: Any, names: list[str], inputs: dict[str, torch.Tensor]) -> Call:
    return lambda: model(**inputs, adapter_names=names)


def _time_in_turn(
    calls: dict[tuple[str, int], Call], num_repeats: int, device: torch.device
) -> dict[tuple[str, int], list[float]]:
    """Return the seconds of each call in each round."""
    seconds: dict[tuple[str, int], list[float]] = {case: [] for case in calls}
    for number in range(WARM_UP + num_repeats):
        for case, call in calls.items():
            elapsed = _time(call, device)
            if number >= WARM_UP:
                seconds[case].append(elapsed)
    return seconds


def _time(call: Call, device: torch.device | None = None) -> float:
    start = time.perf_counter()
    call()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start

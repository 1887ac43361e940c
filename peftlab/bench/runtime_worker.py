"""Batches of many adapters, and loads, taken in turn; runs in a process of its own."""

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
    rounds: int,
    precision: str,
    plain: bool,
    device: str,
) -> list[dict[str, Any]]:
    """The fields of a `BatchTime` for each way and count; the bare base first."""
    names = _loaded(max(counts))
    with _published(names, base, method) as store, torch.inference_mode():
        bank = _bank(store, names, device, precision)
        inputs = _inputs(bank, rows, tokens)
        bare = _plain_model(bank, precision)
        calls: dict[tuple[str, int], Call] = {(BASE_MODEL, 0): lambda: bare(**inputs)}
        if plain:
            adapted = _plain_peft(bank, names, precision)
        for count in counts:
            asked = sorted(names[i * count // rows] for i in range(rows))
            calls["peftlab", count] = _served(bank, asked, inputs)
            if plain:
                calls["plain PEFT", count] = _by_names(adapted, asked, inputs)
        seconds = _in_turn(calls, rounds, inputs["input_ids"].device)
    return [
        {
            "way": way,
            "adapters": count,
            "ratio": statistics.median(one / other for one, other in zip(took, seconds[BASE_MODEL, 0], strict=True)),
            "seconds": statistics.median(took),
        }
        for (way, count), took in seconds.items()
    ]


def publish(base: str, method: dict[str, Any], store: str, loaded: int, fresh: int) -> None:
    """Random adapters for `load_times`: those that are in memory, and those that come."""
    _publish(Store(store), [*_loaded(loaded), *_fresh(fresh)], base, method)


def load_times(store: str, loaded: int, fresh: int, device: str) -> dict[str, float]:
    """The medians of a `LoadTime` in this process."""
    bank, names = _bank(Store(store), _loaded(loaded), device, "fp32"), _fresh(fresh)
    seconds = {
        "growing": [_seconds(partial(bank.add, name)) for name in names],
        "ready": [_seconds(partial(bank.is_routed, name)) for name in names],
    }
    for name in names:
        bank.remove(name)
    seconds["from_disk"] = list(_coming_and_going(bank, names))
    return {case: statistics.median(took[WARM_UP:]) for case, took in seconds.items()}


def _coming_and_going(bank: Bank, names: list[str]) -> Iterator[float]:
    """Seconds that each takes to come; it leaves before the next one does."""
    for name in names:
        yield _seconds(partial(bank.add, name))
        bank.remove(name)


def _loaded(count: int) -> list[str]:
    return [f"random-{i}" for i in range(count)]


def _fresh(rounds: int) -> list[str]:
    return [f"fresh-{i}" for i in range(WARM_UP + rounds)]


@contextmanager
def _published(names: list[str], base: str, method: dict[str, Any]) -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        _publish(store, names, base, method)
        yield store


def _publish(store: Store, names: list[str], base: str, method: dict[str, Any]) -> None:
    publish_random(store, names, BaseSection(model=base), parse_method(method), TextClassificationTask(labels=LABELS))


def _bank(store: Store, names: list[str], device: str, precision: str) -> Bank:
    bank = Bank(store, device=device, precision=cast(Any, precision))
    for name in names:
        bank.add(name)
    return bank


def _inputs(bank: Bank, rows: int, tokens: int) -> dict[str, torch.Tensor]:
    """Random tokens without padding: the time does not depend on which."""
    backbone = bank.base.backbone
    ids = torch.randint(backbone.config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids.to(backbone.device), "attention_mask": torch.ones_like(ids).to(backbone.device)}


def _served(bank: Bank, names: list[str], inputs: dict[str, torch.Tensor]) -> Call:
    """As the bank does it for a batch: adapters are held, the base's pass, each row's head."""
    editions = [bank._registry.resolve(name) for name in names]

    def call() -> Any:
        with bank._cache.pinned(set(editions)) as adapters_by_key:
            return forward_rows([adapters_by_key[edition] for edition in editions], inputs, bank.base.router)

    return call


def _plain_model(bank: Bank, precision: str) -> Any:
    files, config = bank.base.files, head_config(TextClassificationTask(labels=LABELS))
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(files.folder, dtype=DTYPES[precision], **config)
    return model.eval().to(bank.base.backbone.device)


def _plain_peft(bank: Bank, names: list[str], precision: str) -> Any:
    first, *others = names
    model = PeftModel.from_pretrained(_plain_model(bank, precision), bank.adapter(first).folder, adapter_name=first)
    for name in others:
        model.load_adapter(bank.adapter(name).folder, adapter_name=name)
    return model.eval()


def _by_names(model: Any, names: list[str], inputs: dict[str, torch.Tensor]) -> Call:
    return lambda: model(**inputs, adapter_names=names)


def _in_turn(
    calls: dict[tuple[str, int], Call], rounds: int, device: torch.device
) -> dict[tuple[str, int], list[float]]:
    """Seconds of each call in each round."""
    seconds: dict[tuple[str, int], list[float]] = {case: [] for case in calls}
    for number in range(WARM_UP + rounds):
        for case, call in calls.items():
            took = _seconds(call, device)
            if number >= WARM_UP:
                seconds[case].append(took)
    return seconds


def _seconds(call: Call, device: torch.device | None = None) -> float:
    began = time.perf_counter()
    call()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began

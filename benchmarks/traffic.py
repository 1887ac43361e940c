"""A thousand adapters of five tasks on one base, under Zipf traffic: `python -m benchmarks.traffic`.

all-MiniLM-L6-v2, random LoRA adapters (r=8, every Linear), 200 of each task, all of them in host memory, 64 slots. A
round has 1,024 features of at most 64 tokens in batches of 32, each with an adapter drawn by Zipf's law (weight 1/rank
over a shuffled order); for comparison, the same features run with one adapter. Throughput is the median ratio of the
two times over rounds. Then traffic continues for --minutes, and the memory of the process is recorded every 30 seconds.
No other process may run during the measurement.
"""

import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.results import write_result
from peftlab.bench.processes import call_in_process

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
EACH, SLOTS, FEATURES = 200, 64, 1024
WORDS = ("the", "train", "was", "late", "again", "and", "nobody", "at", "small", "station", "could", "say", "why")


@click.command(help=__doc__)
@click.option("--rounds", "num_repeats", default=7, show_default=True)
@click.option("--minutes", default=10.0, show_default=True)
def main(num_repeats: int, minutes: float) -> None:
    """Measure, print and write."""
    told = call_in_process(
        "benchmarks.traffic", "measure_random_traffic", num_repeats=num_repeats, minutes=minutes
    ).value
    write_result("runtime-traffic", "Zipf traffic over 1,000 adapters", [told], __doc__ or "")


def measure_random_traffic(num_repeats: int, minutes: float) -> dict[str, Any]:
    """Measure throughput relative to one adapter, and memory over time."""
    import torch

    from peftlab.runtime import Bank
    from peftlab.runtime.forward import forward_features
    from peftlab.store import Store

    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "adapters")
        names = _publish(store)
        bank = Bank(store, slots=SLOTS, device="cpu")
        for name in names:
            bank.add(name)
        choose = random.Random(0)
        choose.shuffle(names)
        weights = [1 / rank for rank in range(1, len(names) + 1)]
        base = bank.base

        def run(asked: list[tuple[Any, Any]]) -> float:
            start_time = time.perf_counter()
            for start in range(0, len(asked), 32):
                forward_features(
                    asked[start : start + 32], bank._cache.pinned, base.router, base.inputs, max_adapters=SLOTS
                )
            return time.perf_counter() - start_time

        ratios = []
        for _ in range(num_repeats + 1):
            drawn = choose.choices(names, weights, k=FEATURES)
            asked = [(bank._registry.resolve(name), _feature(bank, choose)) for name in drawn]
            one = [(asked[0][0], feature) for _, feature in asked]
            ratios.append(run(one) / run(asked))
        memory = [_resident_bytes()]
        end = time.monotonic() + 60 * minutes
        noted = time.monotonic()
        while time.monotonic() < end:
            run(
                [
                    (bank._registry.resolve(name), _feature(bank, choose))
                    for name in choose.choices(names, weights, k=FEATURES)
                ]
            )
            if time.monotonic() - noted > 30:
                memory.append(_resident_bytes())
                noted = time.monotonic()
    return {
        "adapters": len(names),
        "slots": SLOTS,
        "threads": torch.get_num_threads(),
        "throughput ÷ one adapter's": statistics.median(ratios[1:]),
        "lowest": min(ratios[1:]),
        "highest": max(ratios[1:]),
        "minutes": minutes,
        "memory at first, MB": round(memory[0] / 1e6),
        "at half time": round(memory[len(memory) // 2] / 1e6),
        "at last": round(memory[-1] / 1e6),
    }


def _publish(store: Any) -> list[str]:
    from peftlab.bench.random_adapters import publish_random
    from peftlab.recipe import BaseSection, Lora
    from peftlab.tasks.registry import TASKS

    labels = {"text-classification": ["bad", "fair", "good"], "token-classification": ["LOC", "ORG", "PER"]}
    made: dict[str, Any] = {kind: TASKS[kind].build(labels=list(names)) for kind, names in labels.items()}
    made["topics"] = TASKS["text-classification"].build(labels=["a", "b", "c", "d"], multi_label=True)
    made["regression"] = TASKS["regression"].build()
    made["question-answering"] = TASKS["question-answering"].build()
    every = []
    for seed, (kind, task) in enumerate(made.items()):
        names = [f"{kind}-{i}" for i in range(EACH)]
        publish_random(store, names, BaseSection(model=MODEL), Lora(), task, seed)
        every += names
    return every


def _feature(bank: Any, choose: random.Random) -> Any:
    from peftlab.tasks import Feature

    text = " ".join(choose.choices(WORDS, k=choose.randint(20, 60)))
    return Feature(dict(bank.base.tokenizer(text, truncation=True, max_length=64)), None)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf8").split()[1])
    return pages * 4096


if __name__ == "__main__":
    main()

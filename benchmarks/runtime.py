"""Mixed batches compared with the base model and plain PEFT, and load times: `python -m benchmarks.runtime`.

all-MiniLM-L6-v2, 32 rows × 64 random tokens, random LoRA adapters with r=8; results are medians over batches, which
alternate between the variants in one process per table. The base model has the same precision and one head.
Decode-shaped: one token per row. Loading: the time until all bytes are verified and read and the adapter can predict,
with the given number of adapters in memory; each number is measured in separate processes, which alternate. No other
process may run during the measurement.
"""

from typing import Any

import click

from benchmarks.results import write_result
from peftlab.bench import BatchTime, time_batches, time_loading

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
LORA: dict[str, Any] = {"type": "lora", "r": 8}
CASES: dict[str, dict[str, Any]] = {
    "every Linear, fp32": {},
    "query and value, fp32": {"method": {**LORA, "target_modules": ["query", "value"]}},
    "every Linear, bf16": {"precision": "bf16"},
    "every Linear, fp32, decode-shaped": {"tokens": 1, "num_repeats": 60},
    "(IA)³, fp32": {"method": {"type": "ia3"}, "plain": False},
    "Pfeiffer's bottlenecks, fp32": {"method": {"type": "bottleneck"}, "plain": False},
    "prefixes, fp32": {"method": {"type": "prefix"}, "plain": False},
}


@click.command(help=__doc__)
@click.option("--case", "cases", multiple=True, type=click.Choice(list(CASES)), default=list(CASES))
@click.option("--rounds", "num_repeats", default=21, show_default=True)
@click.option("--loads/--no-loads", default=True, show_default=True)
def main(cases: tuple[str, ...], num_repeats: int, loads: bool) -> None:
    """Measure, print and write."""
    if cases:
        rows = [
            row
            for case in cases
            for row in _rows(case, time_batches(MODEL, **{"num_repeats": num_repeats, **CASES[case]}))
        ]
        write_result("runtime-batches", "Mixed batches", rows, __doc__ or "")
    if loads:
        times = time_loading(MODEL, registered=(1, 100, 1000), num_repeats=80)
        told = [
            {
                "in memory": load.registered,
                "from disk, ms": load.from_disk * 1000,
                "÷ first": load.ratio,
                "growing, ms": load.growing * 1000,
                "ready already, ms": load.ready * 1000,
            }
            for load in times
        ]
        write_result("runtime-loads", "Loading an adapter", told, __doc__ or "")


def _rows(case: str, batches: list[BatchTime]) -> list[dict[str, Any]]:
    return [
        {
            "case": case,
            "way": batch.way,
            "adapters": batch.adapters or "–",
            "time ÷ base model": f"{batch.ratio:.3f}",
            "milliseconds": f"{batch.seconds * 1000:.0f}",
        }
        for batch in batches
    ]


if __name__ == "__main__":
    main()

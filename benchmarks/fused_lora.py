"""Training steps with peftlab's fused LoRA function and with PEFT's layers: `python -m benchmarks.fused_lora`.

all-MiniLM-L6-v2 with LoRA r=8 on every Linear and `lora_dropout: 0.1`, batches of 16 × 32 random tokens, all else as in
`peftlab tune`. The two variants run steps alternately in one process; the result is the median of their time ratios.
Then each variant runs some steps in a separate process, and the operating system reports its peak memory.
"""

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from benchmarks.method_scores import MODEL
from benchmarks.results import data_folder, write_result
from benchmarks.task_scores import banking77
from peftlab.bench import warm_up
from peftlab.bench.processes import call_in_process

BASES = {"whole": None, "8bit": "8bit", "4bit": "4bit"}
WAYS = {"PEFT's layers": False, "fused": True}
MODULE = "benchmarks.fused_lora"
BATCH = (16, 32)


@click.command(help=__doc__)
@click.option("--rounds", "num_repeats", default=30, show_default=True, help="Number of timed steps of each variant.")
def main(num_repeats: int) -> None:
    """Measure each base; print and write the table."""
    warm_up()
    write_result(
        "fused-lora", "LoRA's steps, fused or PEFT's", [_row(base, num_repeats) for base in BASES], __doc__ or ""
    )


def _row(base: str, num_repeats: int) -> dict[str, Any]:
    both = call_in_process(MODULE, "ratios", base=base, ways=list(WAYS), num_repeats=num_repeats).value
    peaks = {
        way: call_in_process(MODULE, "ratios", base=base, ways=[way], num_repeats=3).peak_bytes or 0 for way in WAYS
    }
    return {
        "base": base,
        "step, fused ÷ PEFT's": both["fused"],
        **{f"peak memory, {way}": f"{peak / 1e6:.0f} MB" for way, peak in peaks.items()},
    }


def ratios(base: str, ways: list[str], num_repeats: int) -> dict[str, float]:
    """Median ratio of each variant's step time to the first variant's; steps alternate between variants."""
    from peftlab.bench.step_worker import method_steps, ratios_in_turn

    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        recipes = {way: _write_recipe(Path(work), base, way) for way in ways}
        return ratios_in_turn(method_steps(recipes, BATCH, stack), num_repeats)


def _write_recipe(work: Path, base: str, way: str) -> Path:
    said = banking77(data_folder(), work)
    sections = {
        "name": "steps",
        "base": {"model": MODEL, "quantization": BASES[base]},
        **said,
        "method": {"type": "lora", "r": 8, "lora_dropout": 0.1},
        "training": {**said["training"], "fused_lora": WAYS[way]},
    }
    file = work / f"{list(WAYS).index(way)}.yaml"
    file.write_text(json.dumps(sections), encoding="utf8")  # JSON is YAML
    return file


if __name__ == "__main__":
    main()

"""Generation with eight adapters in one batch, compared with the base model and PEFT: `python -m
benchmarks.generation`.

A Llama with 100 million random parameters (12 layers, hidden size 768, 16,000 tokens), 32 rows with prompts of 32
tokens, 32 new tokens each, greedy, fp32; random LoRA adapters (r=8, every Linear), four rows each, or one adapter for
all rows. The base model and plain PEFT (`adapter_names`) run Transformers' `generate` with the same settings. In each
round each variant generates once; results are medians of the time ratio to the base model in the same round. No other
process may run during the measurement.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.results import write_result
from peftlab.bench.processes import call_in_process

ROWS, PROMPT, NEW, ADAPTERS = 32, 32, 32, 8
VOCABULARY = 16_000
SHAPE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048}
BASE_MODEL = "base model"


@click.command(help=__doc__)
@click.option("--rounds", "num_repeats", default=5, show_default=True)
def main(num_repeats: int) -> None:
    """Measure, print and write."""
    told = call_in_process("benchmarks.generation", "measure_variants", num_repeats=num_repeats).value
    write_result("generation", "Replies of eight adapters in one batch", told, __doc__ or "")


def measure_variants(num_repeats: int) -> list[dict[str, Any]]:
    """One row per variant: ratio of its time to the base model's, and tokens per second."""
    import torch

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        ways = _variants(Path(folder))
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(num_repeats + 1):
            for way, write in ways.items():
                seconds[way].append(_seconds(write))
    kept = {way: took[1:] for way, took in seconds.items()}
    return [
        {
            "way": way,
            "time ÷ base model": statistics.median(a / b for a, b in zip(took, kept[BASE_MODEL], strict=True)),
            "throughput ÷ base model": statistics.median(b / a for a, b in zip(took, kept[BASE_MODEL], strict=True)),
            "tokens a second": f"{ROWS * NEW / statistics.median(took):.0f}",
        }
        for way, took in kept.items()
    ]


def _variants(folder: Path) -> dict[str, Callable[[], Any]]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    import peftlab
    from peftlab.bench.random_adapters import publish_random
    from peftlab.recipe import BaseSection, Lora
    from peftlab.runtime.generation import generate_texts
    from peftlab.store import Store
    from peftlab.tasks import Feature
    from peftlab.tasks.causal_lm import CausalLmTask

    base, store = _base(folder / "base"), Store(folder / "store")
    names = [f"random-{i}" for i in range(ADAPTERS)]
    length = {"max_new_tokens": NEW, "min_new_tokens": NEW}
    task = CausalLmTask(generation=length)
    publish_random(store, names, BaseSection(model=str(base)), Lora(r=8), task)
    bank = peftlab.load(*names, store=store.folder, device="cpu", precision="fp32")
    ids = torch.randint(10, VOCABULARY, (ROWS, PROMPT), generator=torch.Generator().manual_seed(0))
    prompts = [Feature({"input_ids": row, "attention_mask": [1] * PROMPT}, None) for row in ids.tolist()]
    tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    bare = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    adapted = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(adapted, store.resolve(names[0]).folder, adapter_name=names[0])
    for name in names[1:]:
        adapted.load_adapter(store.resolve(name).folder, adapter_name=name)
    adapted.eval()
    plain = {**tensors, **length, "do_sample": False, "pad_token_id": 1}

    def predict_with_bank(asked: list[str]) -> Callable[[], Any]:
        editions = [bank._registry.resolve(name) for name in asked]

        def write() -> Any:
            with bank._cache.pinned(set(editions)) as adapters_by_key:
                rows = [(adapters_by_key[edition], prompt) for edition, prompt in zip(editions, prompts, strict=True)]
                return generate_texts(rows, bank.base.router, bank.base.inputs_for(task))

        return write

    mixed = [names[i * ADAPTERS // ROWS] for i in range(ROWS)]
    return {
        BASE_MODEL: lambda: bare.generate(**plain),
        "peftlab, 1 adapter": predict_with_bank([names[0]] * ROWS),
        f"peftlab, {ADAPTERS} adapters": predict_with_bank(mixed),
        f"plain PEFT, {ADAPTERS} adapters": lambda: adapted.generate(**plain, adapter_names=mixed),
    }


def _base(folder: Path) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t0"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="t1", model_max_length=256).save_pretrained(folder)
    torch.manual_seed(0)
    special = {"bos_token_id": 2, "eos_token_id": 1}
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=256, **SHAPE, **special)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _seconds(call: Callable[[], Any]) -> float:
    start_time = time.perf_counter()
    call()
    return time.perf_counter() - start_time


if __name__ == "__main__":
    main()

"""Translation adapters on a small base, which this benchmark trains first: `python -m benchmarks.translation`.

Multi30k, English to German (captions of pictures). The base is trained in plain torch: an mBART with two encoder and
two decoder layers, hidden size 128, byte-level BPE with 4,000 tokens, 6 epochs on the first 14,500 pairs. Each adapter
is trained on 6,000 other pairs for 4 epochs, at the better of two learning rates by BLEU on 200 sentences of the
validation split. The test split is test_2016_flickr (1,000 sentences), with greedy decoding. "by the command" is the
BLEU score that the command `sacrebleu` computes. The data folder is $PEFTLAB_DATA, or ../shared/data by default.
"""

import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

import peftlab
from benchmarks.results import data_folder, write_result

PIECES, WIDTH, BATCH, EPOCHS, RATE = 4000, 128, 128, 6, 2e-3
HALF, OTHERS, VALIDATED = 14_500, 6_000, 200
MARKS = ("<s>", "</s>", "<pad>")
METHODS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "LoRA, r = 16": ({"type": "lora", "r": 16, "lora_alpha": 32}, (1e-3, 3e-3)),
    "bottleneck (Houlsby)": ({"type": "bottleneck", "variant": "houlsby", "reduction_factor": 4}, (1e-3, 3e-3)),
    "prefix, 16 tokens": ({"type": "prefix", "num_virtual_tokens": 16}, (3e-3, 1e-2)),
}
Pairs = list[tuple[str, str]]


@click.command(help=__doc__)
@click.option("--epochs", default=EPOCHS, show_default=True, help="Epochs of the base.")
@click.option("--adapter-epochs", default=4, show_default=True)
def main(epochs: int, adapter_epochs: int) -> None:
    """Train the base, tune each adapter on it, print and write the table."""
    raw = data_folder() / "mt_multi30k" / "raw"
    pairs = {split: read_pairs(raw, name) for split, name in (("train", "train"), ("validation", "val"))}
    pairs["test"] = read_pairs(raw, "test_2016_flickr")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = make_base(work / "base", pairs["train"], epochs)
        write_splits(work, pairs)
        rows = [evaluate_base(work, base, pairs["test"])]
        rows += [best_of(work, base, name, pairs["test"], adapter_epochs) for name in METHODS]
    write_result("translation", "Translation by adapters", rows, __doc__ or "")


def read_pairs(raw: Path, name: str) -> Pairs:
    """Read the sentence pairs of a split."""
    sides = [gzip.decompress((raw / f"{name}.{side}.gz").read_bytes()) for side in ("en", "de")]
    return list(zip(*(side.decode("utf8").splitlines() for side in sides), strict=True))


def write_splits(work: Path, pairs: dict[str, Pairs]) -> None:
    """Write the splits for the adapters, two files per split."""
    chosen = {
        "train": pairs["train"][HALF : HALF + OTHERS],
        "validation": pairs["validation"][:VALIDATED],
        "test": pairs["test"],
    }
    for split, some in chosen.items():
        for number, side in enumerate(("en", "de")):
            (work / f"{split}.{side}").write_text("".join(f"{pair[number]}\n" for pair in some), encoding="utf8")


def make_base(folder: Path, pairs: Pairs, epochs: int) -> Path:
    """Train a small mBART from scratch on the first half of `pairs`, and save it with its tokenizer."""
    import torch
    from transformers import MBartConfig, MBartForConditionalGeneration

    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder, pairs)
    sides = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 2), ("ffn_dim", 512))}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "d_model": WIDTH, "dropout": 0.1}
    marks = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "decoder_start_token_id": 1}
    shape = {"vocab_size": len(tokenizer), "max_position_embeddings": 128, "scale_embedding": True}
    model = MBartForConditionalGeneration(MBartConfig(**sides, **heads, **marks, **shape, forced_eos_token_id=None))
    learn(model, tokenizer, pairs[:HALF], epochs)
    model.save_pretrained(folder)
    return folder


def make_tokenizer(folder: Path, pairs: Pairs) -> Any:
    """Train and save a byte-level BPE tokenizer for both languages; it appends </s> to each text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=PIECES, special_tokens=[*MARKS], initial_alphabet=letters)
    core.train_from_iterator((text for pair in pairs[:HALF] for text in pair), trainer)
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = dict(zip(("bos_token", "eos_token", "pad_token"), MARKS, strict=True))
    inputs = ["input_ids", "attention_mask"]
    made = PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=128, model_input_names=inputs, **names)
    made.save_pretrained(folder)
    return made


def learn(model: Any, tokenizer: Any, pairs: Pairs, epochs: int) -> None:
    """Train with AdamW, warmup and linear decay, label smoothing 0.1, and batches of similar length."""
    import torch
    from transformers import get_linear_schedule_with_warmup

    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]))
    batches = [[pairs[i] for i in order[start : start + BATCH]] for start in range(0, len(pairs), BATCH)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, 200, epochs * len(batches))
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for number in torch.randperm(len(batches)).tolist():
            inputs = tokenizer([pair[0] for pair in batches[number]], padding=True, return_tensors="pt")
            targets = tokenizer([pair[1] for pair in batches[number]], padding=True, return_tensors="pt")["input_ids"]
            labels = targets.masked_fill(targets == tokenizer.pad_token_id, -100)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(**inputs, labels=labels).logits
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), labels.flatten(), label_smoothing=0.1
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.item()
        click.echo(f"base, epoch {epoch + 1} of {epochs}: loss {total / len(batches):.3f}")


def evaluate_base(work: Path, base: Path, test: Pairs) -> dict[str, Any]:
    """Score the base model on the test split."""
    from peftlab.tasks.prediction import predict_examples
    from peftlab.tuning import check

    run = check(write_recipe(work, base, {"type": "lora"}, 1e-3, 1)).run
    assert run is not None
    examples = run.dataset.examples["test"]
    with run.model.disable_adapter():
        told = predict_examples(run.task, run.model, run.base.inputs, examples, max_length=run.dataset.max_length)
    scores = run.task.metric.score(examples, told).values
    command = by_command(work, [one.written for one in told], test)
    return row("base model", "–", run.base.num_parameters, scores, command)


def best_of(work: Path, base: Path, name: str, test: Pairs, epochs: int) -> dict[str, Any]:
    """Tune with each learning rate, and return the row of the best one by validation."""
    method, rates = METHODS[name]
    by_rate = {}
    for rate in rates:
        result = peftlab.tune(write_recipe(work, base, method, rate, epochs), store=work / "store")
        by_rate[rate] = result
        click.echo(f"{name}, {rate:g}: {result.scores['validation'].values} test {result.scores['test'].values}")
    rate, best = max(by_rate.items(), key=lambda item: item[1].scores["validation"].values["bleu"])
    bank = peftlab.load(str(best.adapter), store=work / "store")
    answers = bank.predict([text for text, _ in test], adapters=str(best.adapter))
    command = by_command(work, [answer.prediction.written for answer in answers], test)  # type: ignore[attr-defined]
    trained = best.adapter.manifest.parameters.trained
    return row(name, f"{rate:g}", trained, best.scores["test"].values, command)


def row(name: str, rate: str, trained: int, scores: dict[str, float], command: float) -> dict[str, Any]:
    """A row of the table."""
    told = {"method": name, "learning rate": rate, "parameters": f"{trained:,}"}
    return {
        **told,
        "BLEU": f"{scores['bleu']:.2f}",
        "by the command": f"{command:.2f}",
        "chrF": f"{scores['chrf']:.2f}",
    }


def by_command(work: Path, written: list[str], test: Pairs) -> float:
    """BLEU as the command `sacrebleu` computes it."""
    (work / "written.txt").write_text("".join(f"{line}\n" for line in written), encoding="utf8")
    (work / "references.txt").write_text("".join(f"{pair[1]}\n" for pair in test), encoding="utf8")
    command = [sys.executable, "-m", "sacrebleu", "references.txt", "-i", "written.txt", "-b", "-w", "4"]
    return float(subprocess.run(command, cwd=work, capture_output=True, text=True, check=True).stdout)


def write_recipe(work: Path, base: Path, method: dict[str, Any], rate: float, epochs: int) -> Path:
    """Write a recipe for the splits in `work`."""
    training = {"learning_rate": rate, "num_train_epochs": epochs, "per_device_train_batch_size": 64}
    sections = {
        "name": "captions",
        "base": {"model": str(base)},
        "task": {"type": "translation", "generation": {"max_new_tokens": 60}},
        "method": method,
        "data": {split: f"{split}.{{en,de}}" for split in ("train", "validation", "test")},
        "training": training,
    }
    file = work / "recipe.yaml"
    file.write_text(json.dumps(sections), encoding="utf8")  # JSON is YAML
    return file


if __name__ == "__main__":
    main()

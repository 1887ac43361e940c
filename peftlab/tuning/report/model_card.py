"""The model card: README.md of a published adapter, in the format of the Hugging Face Hub."""

import json
import re
from collections.abc import Collection
from typing import Any

from transformers import PreTrainedModel

from peftlab.base import Base
from peftlab.base.pooled_code import IMPORTS, pooled_model_code
from peftlab.methods import method_info
from peftlab.store import BaseInfo, LedgerInfo, Manifest, StartInfo, TaskInfo
from peftlab.tasks import TASKS, Scores

_CARD = """\
---
library_name: peft
base_model: {base}
pipeline_tag: {pipeline}
tags: [peftlab, {method}]
---

# {name}

{method} adapter for {task} on `{base}`, tuned with peftlab {peftlab} on {created}.
It trains {trained:,} parameters, {share:.2%} of the base's {frozen:,}.{method_note}{head_sentence}{started}\
{quantization_sentence}

{labels}

## Scores

{scores}

{baselines}

{by_label}

{plots}

{calibration}

## Use

With peftlab, together with any number of adapters on the same base:

```bash
{command}
```

With only PEFT and Transformers:

```python
{setup_code}{torch}from peft import PeftModel
{imports}

{loading}
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```
{reading}

## Data

{ledger}

## Recipe

```yaml
{recipe}```
"""
_WITH_HEAD = """\
head_labels = {head_labels}
base = {auto_class}.from_pretrained(
    "{base}", num_labels={count}, id2label=dict(enumerate(head_labels)){other_head}{quantized}
){padding}"""
_OTHER_HEAD = ",\n    ignore_mismatched_sizes=True"  # the checkpoint has a head of its own, which may have other sizes
_PADDING = "\nbase.config.pad_token_id = {pad_token_id}  # for batches"
_WITHOUT_HEAD = """\
base = {auto_class}.from_pretrained(
    "{base}"{quantized}
)"""
_QUANTIZED = {
    "8bit": """,
    quantization_config=BitsAndBytesConfig(load_in_8bit=True{skipped})""",
    "4bit": """,
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True{skipped}
    )""",
}


def model_card(manifest: Manifest, recipe: str, base: Base, plots: Collection[str]) -> str:
    """The card as Markdown, from the manifest, the text of the recipe, the base with its head, and the plots' names."""
    task, parameters, quantization = manifest.task, manifest.parameters, manifest.base.quantization
    pooled = bool(task.pooling)
    info = method_info(manifest.method)
    built_task, scores = task.build(), manifest.scores
    record = TASKS[task.type]
    output_help = record.output_help(built_task)
    split = manifest.main_split
    last = scores[split] if split else Scores({})
    card = _CARD.format(
        name=manifest.name,
        base=manifest.base.model,
        task=task.type,
        pipeline=record.hub_tag(built_task),
        method=manifest.method,
        peftlab=manifest.versions["peftlab"],
        created=manifest.created[:10],
        trained=parameters.trained,
        share=parameters.trained / parameters.base,
        frozen=parameters.base,
        method_note=f" {info.card_note}" if info.card_note else "",
        started=_start_sentence(manifest.started_from),
        head_sentence=f" The head reads {built_task.head.reads}." if pooled else "",
        quantization_sentence=_quantization_sentence(manifest.base),
        torch="import torch\n" if pooled else "",
        imports=_imports(task, quantized=bool(quantization)),
        labels=f"Labels: {', '.join(f'`{label}`' for label in task.labels)}" if task.labels else "",
        scores=_table("split", {name: scored.values for name, scored in scores.items()}) if scores else "Not scored.",
        by_label=_table(split, last.by_label) if split and last.by_label else _signatures(last),
        baselines=_baselines(manifest),
        plots="\n\n".join(
            f"![{text}]({name})"
            for name, text in (
                ("curves.png", "Training loss" if manifest.validation else "Training loss and validation score"),
                ("confusion.png", f"Confusion of labels, {split}"),
                ("reliability.png", f"Reliability diagram, {split}"),
            )
            if name in plots
        ),
        calibration=f"Probabilities, {split}: {last.calibration}." if last.calibration else "",
        command=f"peftlab predict {manifest.name} {record.example(built_task)}",
        setup_code=f"{info.setup_code}\n" if info.setup_code else "",
        reading=f"\n{output_help}\n" if output_help else "",
        loading=_pooled_loading(manifest, base.model) if pooled else _loading(manifest, base),
        ledger=_table("split", {split: _counts(ledger) for split, ledger in manifest.data.ledger.items()}),
        recipe=recipe,
    )
    return re.sub(r"\n{3,}", "\n\n", card)  # remove the gaps of empty parts


def _baselines(manifest: Manifest) -> str:
    """The score beside those of the baselines, and how the run was validated without a validation split."""
    sentences = []
    if manifest.baselines:
        sentences.append(f"Baselines on the frozen base, {manifest.baselines}.")
        if not manifest.baselines.is_above_probe:
            sentences.append("The adapter is below the linear probe.")
    if manifest.validation and manifest.main_split == "cross-validation":
        sentences.append(f"Scores are those of {manifest.validation}; the adapter was trained on all training rows.")
    return " ".join(sentences)


def _pretrained_head(base: BaseInfo) -> tuple[str, ...]:
    """Layers of the base's own head that must not be quantized; Transformers itself skips a single one."""
    return base.pretrained_head if len(base.pretrained_head) > 1 else ()


def _loading(manifest: Manifest, loaded: Base) -> str:
    """Code that loads the base with Transformers, with a new head if the task has one."""
    task, base = manifest.task, manifest.base
    full = manifest.head_modules or _pretrained_head(base)
    skipped = f", llm_int8_skip_modules={json.dumps(full)}" if full else ""
    quantized = _QUANTIZED[base.quantization].format(skipped=skipped) if base.quantization else ""
    labels, fields = task.head_labels, {"auto_class": task.auto_class, "base": base.model, "quantized": quantized}
    if not labels:
        return _WITHOUT_HEAD.format(**fields)
    fields |= {"other_head": _OTHER_HEAD if loaded.head_note else "", "padding": _padding(loaded)}
    return _WITH_HEAD.format(head_labels=json.dumps(labels, ensure_ascii=False), count=len(labels), **fields)


def _padding(base: Base) -> str:
    """A line that names the token for padding, if the base's own configuration does not."""
    config, name = base.model.config, "pad_token_id"
    own = base.files.config.get(name, getattr(type(config), name, None))
    number = getattr(config, name, None)
    return "" if own == number else _PADDING.format(pad_token_id=number)


def _imports(task: TaskInfo, *, quantized: bool) -> str:
    """The imports from Transformers that the code needs."""
    config = ", BitsAndBytesConfig" if quantized else ""
    return (
        IMPORTS.replace("AutoModel", f"AutoModel{config}")
        if task.pooling
        else (f"from transformers import {task.auto_class}{config}")
    )


def _pooled_loading(manifest: Manifest, model: PreTrainedModel) -> str:
    """Code that builds the base with a head that pools."""
    base, head = manifest.base, manifest.task.build().head
    # an empty list quantizes the last layer too, as in training
    skipped = ", llm_int8_skip_modules=[]"
    quantized = _QUANTIZED[base.quantization].format(skipped=skipped) if base.quantization else ""
    own_tuner = bool(method_info(manifest.method).setup_code)
    arguments = f'"{base.model}"{quantized}'
    code = pooled_model_code(model, head, arguments, base.quantization, needs_base_model=own_tuner)
    return f"{code}\n\nbase = {type(model).__name__}()"


def _signatures(scores: Scores) -> str:
    """How scores were computed, as the metric library describes it."""
    return "\n".join(f"- {name}: `{signature}`" for name, signature in scores.signatures.items())


def _start_sentence(start: StartInfo | None) -> str:
    """Which adapter the run started from; empty if none."""
    if not start:
        return ""
    head = " and head" if start.with_head else ""
    return f" It was started from the delta{head} of `{start.adapter}` (manifest {start.manifest_sha256[:12]}…)."


def _quantization_sentence(base: BaseInfo) -> str:
    """How much memory the quantization saves; empty without quantization."""
    if not (base.quantization and base.memory):
        return ""
    in_memory, fp32 = (f"{size / 1e6:.1f} MB" for size in (base.memory.in_memory, base.memory.fp32))
    return f" The base is quantized to {base.quantization}: {in_memory} of memory, in fp32 {fp32}."


def _counts(ledger: LedgerInfo) -> dict[str, Any]:
    return {
        "rows read": ledger.read,
        "used": ledger.used,
        "dropped": sum(ledger.dropped.values()),
        "cut": ledger.truncated,
        "targets": ledger.targets,
        "targets lost": ledger.num_lost_targets,
    }


def _table(corner: str, rows: dict[str, dict[str, Any]]) -> str:
    """A Markdown table with one line for each of `rows`, which have the same keys."""
    columns = list(next(iter(rows.values())))
    lines = [[corner, *columns], ["---", *["---:"] * len(columns)]]
    lines += [[name, *(_cell(values[column]) for column in columns)] for name, values in rows.items()]
    return "\n".join(f"| {' | '.join(map(_escape, line))} |" for line in lines)


def _escape(text: str) -> str:
    """Text in one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def _cell(value: float) -> str:
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}"

"""The task of an adapter that was trained elsewhere, and the order of its head's outputs.

PEFT's files do not name the outputs of a head, so the user names them. The number of outputs is read from the shapes
of the head's tensors.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import transformers

from peftlab.base import BaseFiles
from peftlab.errors import ErrorCollector, suggest
from peftlab.interop.peft_files import SavedAdapter
from peftlab.store import PEFT_PREFIX
from peftlab.tasks import TASKS, Task
from peftlab.tasks.inputs.inputs import Inputs
from peftlab.tasks.labels.tag_schemes import types_of_tags
from peftlab.tasks.record import ImportedHead

ANY_TASK = (None, "FEATURE_EXTRACTION")
MIN_LENGTH = 8  # tokens, as of data.max_length


@dataclass(frozen=True)
class ImportTask:
    """The task that the user names; `order` lists, for each output of our head, its index in the saved head."""

    task: Task
    order: list[int] | None = None


@dataclass(frozen=True)
class ModelLayout:
    """The task's model without weights: names of its modules, and of the tensors with one row for each label."""

    modules: list[str]
    outputs: list[str]
    max_length: int


def parse_import_task(
    kind: str, labels: Sequence[str] | None, *, multi_label: bool, threshold: float | None, saved: SavedAdapter
) -> ImportTask:
    """Build the task of a saved adapter from the user's arguments.

    Raises:
        RecipeError: unknown task, wrong options or labels, or PEFT trained another task; lists every problem.
    """
    names = [label.strip() for label in labels or ()]
    with ErrorCollector() as errors:
        _check_kind(kind, saved.config.get("task_type"), errors)
        errors.raise_if_any()
        _check_options(kind, multi_label, threshold, errors)
        _check_labels(kind, names, multi_label, errors)
        record, head = TASKS[kind], cast(ImportedHead, _imported_head(kind))
        types = _types(names, errors) if head.labels == "tags" and names else []
    if head.labels == "tags":
        task = record.build(labels=types)
        return ImportTask(task, [names.index(tag) for tag in task.head.labels])
    return ImportTask(record.build(**head.options(names, multi_label, threshold, saved.config)))


def _imported_head(kind: str) -> ImportedHead | None:
    return TASKS[kind].imported if kind in TASKS else None


def _check_kind(kind: str, trained_as: Any, errors: ErrorCollector) -> None:
    importable = {name: head.peft_task_type for name in TASKS if (head := _imported_head(name))}
    refusal = TASKS[kind].import_refusal if kind in TASKS else ""
    if refusal:
        errors.add(f"{kind} cannot be imported: {refusal}.", key="task", hint="Train a new adapter: peftlab tune.")
    elif kind not in importable:
        errors.add(f"unknown task '{kind}'.", key="task", hint=suggest(kind, importable))
    elif trained_as not in (*ANY_TASK, importable[kind]):
        fitting = [ours for ours, theirs in importable.items() if theirs == trained_as]
        hint = f"Use {' or '.join(fitting)}." if fitting else "Such an adapter has no head that peftlab knows."
        errors.add(f"PEFT trained it as {trained_as}, which is not {kind}.", key="task", hint=hint)


def _check_options(kind: str, multi_label: bool, threshold: float | None, errors: ErrorCollector) -> None:
    if multi_label and cast(ImportedHead, _imported_head(kind)).labels != "labels":
        errors.add(f"{kind} has no multi-label form.", key="multi_label", hint="Remove it.")
    if threshold is not None and not multi_label:
        errors.add("a threshold needs --multi-label.", key="threshold", hint="Remove it, or add --multi-label.")
    elif threshold is not None and not 0 < threshold < 1:
        errors.add(f"should be between 0 and 1, not {threshold:g}.", key="threshold")


def _check_labels(kind: str, names: Sequence[str], multi_label: bool, errors: ErrorCollector) -> None:
    label_kind = cast(ImportedHead, _imported_head(kind)).labels
    if label_kind == "none":
        if names:
            errors.add(f"{kind} has none.", key="labels", hint="Remove them.")
        return
    least = 1 if multi_label or label_kind == "tags" else 2
    if len(names) < least:
        tags = label_kind == "tags"
        example = "O,B-PER,I-PER" if tags else "negative,positive"
        message = f"the {'tags' if tags else 'labels'} of the head are missing"
        errors.add(f"{message if not names else 'one label is not enough'}.", key="labels",
                     hint=f"Name each one in the head's order, as in {example}; see the model's id2label.")  # fmt: skip
    if "" in names:
        errors.add(f"label {names.index('') + 1} is empty.", key="labels")
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice and label_kind != "tags":
        errors.add(f"{', '.join(repr(name) for name in twice)} is given twice.", key="labels")


def _types(names: Sequence[str], errors: ErrorCollector) -> list[str]:
    try:
        return types_of_tags(names)
    except ValueError as error:
        errors.add(
            f"the tags of a head should be O, and B- and I- of each type: {error}.",
            key="labels",
            hint="Other schemes (IOB1's heads without B-, IOBES) cannot be imported.",
        )
        return []


def inspect_model(task: Task, files: BaseFiles, inputs: Inputs, *, trust_remote_code: bool) -> ModelLayout:
    """Read the layout of the task's model from its configuration; no weights are loaded."""
    trusted = {"trust_remote_code": trust_remote_code}
    model_class, shapes = getattr(transformers, task.head.auto_class), []
    for outputs in cast(ImportedHead, _imported_head(task.type)).num_outputs:
        config = transformers.AutoConfig.from_pretrained(files.folder, **trusted, num_labels=outputs)
        with torch.device("meta"):
            model = model_class.from_config(config, **trusted)
        shapes.append({name: tensor.shape for name, tensor in model.state_dict().items()})
    wide = [name for name, shape in shapes[0].items() if shape != shapes[-1][name]]
    return ModelLayout([name for name, _ in model.named_modules() if name], wide, inputs.max_length(model))


def check_widths(task: Task, saved: Mapping[str, torch.Tensor], layout: ModelLayout, errors: ErrorCollector) -> None:
    """Add an error if the head has more or fewer outputs than the task; a missing head is reported later."""
    expected = len(task.head.labels)
    found = {len(saved[f"{PEFT_PREFIX}{name}"]): name for name in layout.outputs if f"{PEFT_PREFIX}{name}" in saved}
    for width, name in found.items():
        if width == expected:
            continue
        found_outputs = f"the head has {_counted(width)} ({name.rpartition('.')[0]})"
        if task.labels:
            errors.add(
                f"{found_outputs}, and {expected} labels are named: {', '.join(task.head.labels)}.", key="labels"
            )
        else:
            errors.add(f"{found_outputs}, and {task.type} takes {_counted(expected)}.", key="task")


def check_length(max_length: int | None, layout: ModelLayout, errors: ErrorCollector) -> None:
    """Add an error if `max_length` is longer than the base takes, or shorter than any useful input."""
    if max_length is not None and not MIN_LENGTH <= max_length <= layout.max_length:
        message = f"should be {MIN_LENGTH} to {layout.max_length} tokens, which this base takes, not {max_length}."
        errors.add(message, key="max_length")


def reorder_outputs(
    tensors: Mapping[str, torch.Tensor], outputs: Iterable[str], order: list[int] | None
) -> dict[str, torch.Tensor]:
    """Reorder the outputs of the head as its task orders its labels; all other tensors stay."""
    head_names = {f"{PEFT_PREFIX}{name}" for name in outputs} if order else set()
    return {name: tensor[order].contiguous() if name in head_names else tensor for name, tensor in tensors.items()}


def _counted(outputs: int) -> str:
    return "1 output" if outputs == 1 else f"{outputs} outputs"

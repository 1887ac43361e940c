"""Find the parameters and modules of a model's head.

A new head consists of the parameters that the base's checkpoint does not contain. A language model keeps the head of
its checkpoint, which stays frozen.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from peftlab.imports import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from peftlab.tasks import Task


def head_config(task: "Task") -> dict[str, Any]:
    """The fields of the model's configuration that make its head fit `task`; none for a language model."""
    if not task.head.labels:
        return {}
    names = dict(enumerate(task.head.labels))
    labels = {"num_labels": len(names), "id2label": names, "label2id": {name: i for i, name in names.items()}}
    return labels | ({"problem_type": task.head.problem_type} if task.head.problem_type else {})


def head_parameters(model: "PreTrainedModel", new: set[str]) -> set[str]:
    """Names of all parameters of the head: the `new` ones, and the rest of the head if only a part of it is new.

    In ModernBERT, for example, a new classifier follows a `head` from the checkpoint; together they are the head.
    """
    prefix = f"{model.base_model_prefix}."
    outside = {name for name, _ in model.named_parameters() if not name.startswith(prefix)}
    pretrained = model.get_output_embeddings() is not None or not hasattr(model, model.base_model_prefix)
    return new if pretrained or new.isdisjoint(outside) else new | outside


def lm_head_modules(model: "PreTrainedModel") -> Iterator[str]:
    """Names of the modules of a language model's own head: everything outside its backbone. They stay frozen.

    The weight of the last module is usually tied to the embeddings.
    """
    output_embeddings, prefix = model.get_output_embeddings(), model.base_model_prefix
    if output_embeddings is None:
        return
    if prefix not in dict(model.named_children()):  # T5 has no separate backbone module
        yield from (name for name, module in model.named_modules() if module is output_embeddings)
        return
    yield from (name for name, _ in model.named_modules() if name and not f"{name}.".startswith(f"{prefix}."))


def find_modules_to_save(model: "PreTrainedModel", new: set[str]) -> list[str]:
    """The outermost modules whose parameters are all `new`: a head of two layers is one module."""
    found: list[str] = []
    for name, module in model.named_modules():
        parameters = {f"{name}.{inner}" for inner, _ in module.named_parameters()}
        if name and parameters and parameters <= new and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return sorted(found)


def find_output_layer(model: "PreTrainedModel", head_modules: Sequence[str]) -> str | None:
    """The name of the last Linear with one output per label in a model's `head_modules`; None if there is none."""
    linears = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module.out_features == model.config.num_labels
        and any(f"{name}.".startswith(f"{outer}.") for outer in head_modules)
    ]
    return linears[-1] if linears else None

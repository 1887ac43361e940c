"""What a head is: all that the base's checkpoint does not hold, or a language model's own, which stays as it is."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from peftlab.tasks import Task


def head_config(task: "Task") -> dict[str, Any]:
    """What a model's configuration must say so that its head fits `task`."""
    if not task.head_labels:  # the base's own
        return {}
    names = dict(enumerate(task.head_labels))
    fitting = {"num_labels": len(names), "id2label": names, "label2id": {name: i for i, name in names.items()}}
    return fitting | ({"problem_type": task.problem_type} if task.problem_type else {})


def whole_head(model: "PreTrainedModel", new: set[str]) -> set[str]:
    """`new`, and the rest of a head that is new in part, as a classifier upon ModernBERT's own `head`: both are one."""
    inside = f"{model.base_model_prefix}."
    outside = {name for name, _ in model.named_parameters() if not name.startswith(inside)}
    own = model.get_output_embeddings() is not None or not hasattr(model, model.base_model_prefix)
    return new if own or new.isdisjoint(outside) else new | outside


def own_head(model: "PreTrainedModel") -> Iterator[str]:
    """Names of the modules of a language model's own head, all that is not its backbone, which stays as it is.

    The last of them is mostly the embeddings once more.
    """
    vocabulary, inside = model.get_output_embeddings(), model.base_model_prefix
    if vocabulary is None:
        return
    if inside not in model._modules:  # T5 holds its backbone itself
        yield from (name for name, module in model.named_modules() if module is vocabulary)
        return
    yield from (name for name, _ in model.named_modules() if name and not f"{name}.".startswith(f"{inside}."))


def whole_modules(model: "PreTrainedModel", new: set[str]) -> list[str]:
    """The outermost modules of which every parameter is new: a two-layer head is one module."""
    whole: list[str] = []
    for name, module in model.named_modules():
        inside = {f"{name}.{inner}" for inner, _ in module.named_parameters()}
        if name and inside and inside <= new and not any(name.startswith(f"{outer}.") for outer in whole):
            whole.append(name)
    return sorted(whole)

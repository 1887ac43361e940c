"""Find the parameters and modules of a model's head.

A trained head is what lies outside the backbone: the checkpoint has none, or its own is replaced by a new one unless
the recipe continues it. A language model keeps the head of its checkpoint, which stays frozen.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from peftlab.imports import torch, transformers

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


def head_parameters(model: "PreTrainedModel", new: set[str], *, is_trained: bool) -> set[str]:
    """Names of all parameters of a trained head, or of a language model's head only the `new` ones.

    A trained head is what lies outside the backbone, and what else is new. In ModernBERT, for example, a new classifier
    follows a `head` from the checkpoint, and BERT's pooler is new if the checkpoint has none.
    """
    return new | parameters_outside_backbone(model) if is_trained else new


def parameters_outside_backbone(model: "PreTrainedModel") -> set[str]:
    """Names of the parameters that Transformers' `AutoModel` does not have."""
    names = {name for name, _ in model.named_parameters()}
    if model.base_model_prefix in model._modules:
        return {name for name in names if not name.startswith(f"{model.base_model_prefix}.")}
    with torch.device("meta"):  # T5 for question answering has no separate backbone module
        backbone = transformers.AutoModel.from_config(model.config)
    return names - {name for name, _ in backbone.named_parameters()}


def initialize_parameters(model: "PreTrainedModel", names: Collection[str]) -> None:
    """Give these parameters new values, as Transformers initializes those that a checkpoint lacks."""
    flag = "_is_hf_initialized"  # of tensors and modules; Transformers leaves alone what has it
    for name, parameter in model.named_parameters():
        setattr(parameter, flag, name not in names)
        owner = name.rpartition(".")[0]
        while name in names and owner:
            setattr(model.get_submodule(owner), flag, False)
            owner = owner.rpartition(".")[0]
    setattr(model, flag, False)
    model.initialize_weights()


def initialize_bias(model: "PreTrainedModel", new: set[str], values: Sequence[float] | None) -> None:
    """Set the bias of the outputs of a new head, if it has one; None leaves it as it is."""
    if values is None:
        return
    biases = [parameter for name, parameter in model.named_parameters() if name in new and name.endswith("bias")]
    if biases and biases[-1].shape == (len(values),):
        biases[-1].data.copy_(biases[-1].new_tensor(values))


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

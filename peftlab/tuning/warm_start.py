"""A run that begins with the weights of a published adapter, of any task on the same base (`method.start_from`).

All of its delta is taken where this run's model has a place for it; its head only for the very same task and labels.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.base import Base, blank_with_head
from peftlab.errors import AdapterNotFoundError, ErrorCollector, IntegrityError, ValidationIssue
from peftlab.recipe import Recipe
from peftlab.store import CONFIG_FILE, PEFT_PREFIX, WEIGHTS_FILE, Adapter, StartInfo, Store
from peftlab.tasks import Task

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

KEY = "method.start_from"
OF_ITS_MAKING = (
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type",
)  # fmt: skip
PLACES = (
    "exclude_modules", "feedforward_modules", "layers_pattern", "layers_to_transform", "modules_to_save",
    "target_modules",
)  # fmt: skip
"""Fields of PEFT's configurations that name modules: the tensors tell which they are."""


@dataclass(frozen=True)
class Start:
    """What a run began with: `taken` tensors of an adapter's delta, and its head or not.

    `anew` names modules that the adapter's own model lacks, so that their part of the delta begins as it would without
    it; `left` those that this model lacks.
    """

    adapter: Adapter
    taken: int
    with_head: bool
    why_no_head: str
    anew: list[str]
    left: list[str]

    def __str__(self) -> str:
        head = "and its head" if self.with_head else f"and not its head: {self.why_no_head}"
        told = f"Starts from {self.adapter} ({self.adapter.manifest.task.type}): {self.taken} tensors, {head}."
        if self.anew:
            told += f" Its model has no {', '.join(self.anew)}, which begin anew."
        return told + (f" Left out: {', '.join(self.left)}, which this model has not." if self.left else "")

    def info(self) -> StartInfo:
        """The part of the manifest."""
        return StartInfo(
            adapter=str(self.adapter),
            manifest_sha256=self.adapter.manifest.manifest_sha256,
            num_tensors=self.taken,
            with_head=self.with_head,
            newly_initialized=tuple(self.anew),
            skipped=tuple(self.left),
        )


def find_start(recipe: Recipe, shelf: Store, errors: ErrorCollector) -> Adapter | None:
    """The verified adapter that the recipe starts from; one that is absent, damaged or of another method is noted."""
    reference = recipe.method.start_from
    if reference is None:
        return None
    path = Path(reference)
    store, name = (Store(path.parent), path.name) if "/" in reference else (shelf, reference)
    try:
        adapter = store.verify(name)
    except (AdapterNotFoundError, IntegrityError) as error:
        errors.add(str(error), key=KEY)
        return None
    if (method := adapter.manifest.method) != recipe.method.type:
        message = f"{adapter} is of method {method}, and this recipe's is {recipe.method.type}."
        errors.add(message, key=KEY, hint="Take its method, or another adapter.")
    return adapter


def begin_with(
    adapter: Adapter, model: "PeftModel", base: Base, task: Task, *, trust_remote_code: bool = False
) -> Start:
    """Put the adapter's weights into a fresh `model` of the run.

    Raises:
        RecipeError: it was tuned on another base, or its delta has another shape; tells every difference.
        IntegrityError: PEFT did not put every tensor into its place.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    theirs, mine = (
        load_file(adapter.folder / WEIGHTS_FILE),
        get_peft_model_state_dict(model, save_embedding_layers=False),
    )
    _check_fitting(adapter, model, base)
    blank = blank_with_head(base.files, adapter.task, trust_remote_code=trust_remote_code)
    with ErrorCollector() as errors:
        anew, left = _Places(adapter, base, model, blank).apart(set(mine), set(theirs), errors)
    why = _why_no_head(adapter, task)
    held = () if not why else (*_head_modules(adapter), *base.head_modules)
    taken = {name: tensor for name, tensor in theirs.items() if name in mine and not _inside(name, held)}
    _check_shapes(adapter, taken, mine)
    set_peft_model_state_dict(model, {**mine, **taken})  # PEFT wants a head in any case
    _check_taken(adapter, taken, get_peft_model_state_dict(model, save_embedding_layers=False))
    return Start(adapter, sum(not _inside(name, base.head_modules) for name in taken), not why, why, anew, left)


def _check_fitting(adapter: Adapter, model: "PeftModel", base: Base) -> None:
    with ErrorCollector() as errors:
        for issue in (*_of_another_base(adapter, base), *_shaped_otherwise(adapter, model)):
            errors.add(issue.message, key=issue.key, hint=issue.hint)


def _check_shapes(adapter: Adapter, taken: Mapping[str, "Tensor"], mine: Mapping[str, "Tensor"]) -> None:
    with ErrorCollector() as errors:
        for name in (name for name, tensor in taken.items() if tensor.shape != mine[name].shape):
            shapes = f"{tuple(taken[name].shape)} in {adapter}, and {tuple(mine[name].shape)} here"
            errors.add(f"{name.removeprefix(PEFT_PREFIX)} is {shapes}.", key=KEY)


def _of_another_base(adapter: Adapter, base: Base) -> Iterator[ValidationIssue]:
    told = adapter.manifest.base
    for what, theirs, mine in (
        ("weights", told.fingerprint, base.fingerprint),
        ("tokenizer", told.tokenizer_sha256, base.tokenizer_hash),
    ):
        if theirs != mine:
            message = (
                f"{adapter} was tuned on '{told.model}' with {what} {theirs[:12]}…, and this base has {mine[:12]}…."
            )
            yield ValidationIssue(message, key=KEY, hint="Take the same base, or another adapter.")


def _shaped_otherwise(adapter: Adapter, model: "PeftModel") -> Iterator[ValidationIssue]:
    """A problem for each field of the method that an adapter of these weights cannot have otherwise."""
    theirs = json.loads((adapter.folder / CONFIG_FILE).read_text(encoding="utf8"))
    mine = json.loads(json.dumps(model.peft_config["default"].to_dict(), default=_plain))
    for field in sorted(theirs.keys() & mine.keys()):
        training_only = "dropout" in field or field.startswith("init_")
        if theirs[field] == mine[field] or training_only or field in (*OF_ITS_MAKING, *PLACES):
            continue
        message = f"it is {mine[field]} here, and {theirs[field]} in {adapter}, which this recipe starts from."
        yield ValidationIssue(message, key=f"method.{field}", hint=f"Take {theirs[field]}, or another adapter.")


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else getattr(value, "value", str(value))


def _head_modules(adapter: Adapter) -> Sequence[str]:
    """The modules that the adapter saves in full; early manifests do not list them, and PEFT's configuration does."""
    if adapter.manifest.head_modules is not None:
        return adapter.manifest.head_modules
    config = json.loads((adapter.folder / CONFIG_FILE).read_text(encoding="utf8"))
    return list(dict.fromkeys(config.get("modules_to_save") or ()))


class _Places:
    """The modules that hold the deltas of an adapter and of a run, and those that each of their models has at all.

    `blank` is the adapter's own, without weights.
    """

    def __init__(self, adapter: Adapter, base: Base, model: "PeftModel", blank: "PreTrainedModel") -> None:
        from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

        self._adapter, self._mark = adapter, f".{PEFT_TYPE_TO_PREFIX_MAPPING[model.peft_config['default'].peft_type]}"
        self._heads = (*_head_modules(adapter), *base.head_modules)
        self._theirs = {name for name, _ in blank.named_modules()}
        self._mine = {name for name, _ in model.get_base_model().named_modules()}

    def apart(self, mine: set[str], theirs: set[str], errors: ErrorCollector) -> tuple[list[str], list[str]]:
        """Modules with a delta in one alone, since the other's model has no such module.

        One that both models have, and only one adapts, is a problem.
        """
        only_mine, only_theirs = self._modules(mine - theirs), self._modules(theirs - mine)
        for adapted, by, not_by in (
            (only_mine & self._theirs, "this recipe", str(self._adapter)),
            (only_theirs & self._mine, str(self._adapter), "this recipe"),
        ):
            if adapted:
                ends = ", ".join(sorted({name.rpartition(".")[2] for name in adapted}))
                hint = "Take the same target_modules and layers, or another adapter."
                errors.add(f"{by} adapts {len(adapted)} modules ({ends}) that {not_by} does not.", key=KEY, hint=hint)
        return sorted(only_mine - self._theirs), sorted(only_theirs - self._mine)

    def _modules(self, tensors: set[str]) -> set[str]:
        """`….query.lora_A.weight` is of `….query`; what a head holds is left out."""
        return {self._module(name) for name in tensors if not _inside(name, self._heads)}

    def _module(self, tensor: str) -> str:
        name = tensor.removeprefix(PEFT_PREFIX)
        return name.rpartition(self._mark)[0] if self._mark in name else name.rpartition(".")[0]


def _inside(tensor: str, modules: tuple[str, ...] | list[str]) -> bool:
    name = tensor.removeprefix(PEFT_PREFIX)
    return any(name.startswith(f"{module}.") for module in modules)


def _why_no_head(adapter: Adapter, task: Task) -> str:
    """Why its head cannot be taken; empty where it can."""
    theirs = adapter.task
    if not theirs.head_labels:
        return "it has none of its own"
    if (theirs.type, theirs.auto_class) != (task.type, task.auto_class):
        return f"it is for {theirs.type}"
    same = (theirs.head_labels, theirs.problem_type) == (task.head_labels, task.problem_type)
    return "" if same else f"it has other labels ({', '.join(theirs.head_labels)})"


def _check_taken(adapter: Adapter, taken: Mapping[str, "Tensor"], found: Mapping[str, "Tensor"]) -> None:
    lost = [
        name for name, tensor in taken.items() if not found[name].detach().cpu().equal(tensor.to(found[name].dtype))
    ]
    if lost:
        told = ", ".join(name.removeprefix(PEFT_PREFIX) for name in lost[:3])
        raise IntegrityError(f"{adapter} cannot be started from: PEFT did not take {told}. Please report this.")

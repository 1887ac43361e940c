"""Load the weights of a published adapter into the fresh model of a run, which may be for another task.

The delta is loaded wherever the run's model has the same module; the head only for the same task and labels.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from peftlab.base import Base, init_empty_model
from peftlab.errors import ErrorCollector, IntegrityError, ValidationIssue
from peftlab.store import CONFIG_FILE, PEFT_PREFIX, WEIGHTS_FILE, Adapter
from peftlab.tasks import Task
from peftlab.tuning.warm_start import RECIPE_KEY, WarmStart

UNCOMPARED_FIELDS = (
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type",
)  # fmt: skip
MODULE_FIELDS = (
    "exclude_modules", "feedforward_modules", "layers_pattern", "layers_to_transform", "modules_to_save",
    "target_modules",
)  # fmt: skip
"""Fields of PEFT's configurations that select modules. They are not compared, because the tensor names are."""

Tensors = Mapping[str, Tensor]


def load_start_weights(
    adapter: Adapter, model: PeftModel, base: Base, task: Task, *, trust_remote_code: bool = False
) -> WarmStart:
    """Load the adapter's weights into `model`.

    Raises:
        RecipeError: the adapter was tuned on another base, or its delta has other shapes; lists every difference.
        IntegrityError: PEFT did not load every tensor.
    """
    saved, fresh = load_file(adapter.folder / WEIGHTS_FILE), _state_dict(model)
    _check_compatible(adapter, model, base)
    blank = init_empty_model(base.files, adapter.task, trust_remote_code=trust_remote_code)
    with ErrorCollector() as errors:
        newly_initialized, skipped = _AdaptedModules(adapter, base, model, blank).differences(fresh, saved, errors)
    reason = _no_head_reason(adapter, task)
    excluded = (*_head_modules(adapter), *base.head_modules) if reason else ()
    loaded = {name: tensor for name, tensor in saved.items() if name in fresh and not _is_inside(name, excluded)}
    _check_shapes(adapter, loaded, fresh)
    set_peft_model_state_dict(model, {**fresh, **loaded})  # PEFT requires a head in any case
    _check_loaded(adapter, loaded, _state_dict(model))
    num_tensors = sum(not _is_inside(name, base.head_modules) for name in loaded)
    return WarmStart(adapter, num_tensors, not reason, reason, newly_initialized, skipped)


def _state_dict(model: PeftModel) -> dict[str, Tensor]:
    return get_peft_model_state_dict(model, save_embedding_layers=False)


def _check_compatible(adapter: Adapter, model: PeftModel, base: Base) -> None:
    with ErrorCollector() as errors:
        for issue in (*_base_differences(adapter, base), *_config_differences(adapter, model)):
            errors.add(issue.message, key=issue.key, hint=issue.hint)


def _base_differences(adapter: Adapter, base: Base) -> Iterator[ValidationIssue]:
    tuned_on = adapter.manifest.base
    for part, expected, found in (
        ("weights", tuned_on.fingerprint, base.fingerprint),
        (base.inputs.processor_name, tuned_on.inputs_fingerprint, base.inputs_fingerprint),
    ):
        if expected != found:
            was = f"{adapter} was tuned on '{tuned_on.model}' with {part} {expected[:12]}…"
            message = f"{was}, and this base has {found[:12]}…."
            yield ValidationIssue(message, key=RECIPE_KEY, hint="Use the same base, or another adapter.")


def _config_differences(adapter: Adapter, model: PeftModel) -> Iterator[ValidationIssue]:
    """An issue for each field of the method that must be the same for the weights to fit."""
    saved = json.loads((adapter.folder / CONFIG_FILE).read_text(encoding="utf8"))
    current = json.loads(json.dumps(model.peft_config["default"].to_dict(), default=_to_json))
    for field in sorted(saved.keys() & current.keys()):
        only_for_training = "dropout" in field or field.startswith("init_")
        if saved[field] == current[field] or only_for_training or field in (*UNCOMPARED_FIELDS, *MODULE_FIELDS):
            continue
        message = f"it is {current[field]} here, and {saved[field]} in {adapter}, which this recipe starts from."
        yield ValidationIssue(message, key=f"method.{field}", hint=f"Use {saved[field]}, or another adapter.")


def _to_json(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else getattr(value, "value", str(value))


def _head_modules(adapter: Adapter) -> Sequence[str]:
    """The modules that the adapter saves in full; early manifests do not list them, but PEFT's configuration does."""
    if adapter.manifest.head_modules is not None:
        return adapter.manifest.head_modules
    config = json.loads((adapter.folder / CONFIG_FILE).read_text(encoding="utf8"))
    return list(dict.fromkeys(config.get("modules_to_save") or ()))


class _AdaptedModules:
    """Which modules an adapter and a run adapt, and which modules their models have at all.

    `blank` is the adapter's own model, without weights.
    """

    def __init__(self, adapter: Adapter, base: Base, model: PeftModel, blank: PreTrainedModel) -> None:
        self.adapter = adapter
        self.separator = f".{PEFT_TYPE_TO_PREFIX_MAPPING[model.peft_config['default'].peft_type]}"
        self.heads = (*_head_modules(adapter), *base.head_modules)
        self.in_adapter_model = {name for name, _ in blank.named_modules()}
        self.in_run_model = {name for name, _ in model.get_base_model().named_modules()}

    def differences(self, fresh: Tensors, saved: Tensors, errors: ErrorCollector) -> tuple[list[str], list[str]]:
        """Adapted modules that only the run's model has, and those that only the adapter's model has.

        A module that both models have, but only one of the two adapts, is an error.
        """
        only_fresh = self._modules(fresh.keys() - saved.keys())
        only_saved = self._modules(saved.keys() - fresh.keys())
        self._check_both_adapt(only_fresh & self.in_adapter_model, "this recipe", str(self.adapter), errors)
        self._check_both_adapt(only_saved & self.in_run_model, str(self.adapter), "this recipe", errors)
        return sorted(only_fresh - self.in_adapter_model), sorted(only_saved - self.in_run_model)

    def _check_both_adapt(self, modules: set[str], adapts: str, does_not: str, errors: ErrorCollector) -> None:
        if modules:
            names = ", ".join(sorted({module.rpartition(".")[2] for module in modules}))
            message = f"{adapts} adapts {len(modules)} modules ({names}) that {does_not} does not."
            errors.add(message, key=RECIPE_KEY, hint="Use the same target_modules and layers, or another adapter.")

    def _modules(self, tensors: Iterable[str]) -> set[str]:
        """`….query.lora_A.weight` → `….query`, without tensors of a head."""
        return {self._module(name) for name in tensors if not _is_inside(name, self.heads)}

    def _module(self, tensor: str) -> str:
        name = tensor.removeprefix(PEFT_PREFIX)
        return name.rpartition(self.separator if self.separator in name else ".")[0]


def _is_inside(tensor: str, modules: Iterable[str]) -> bool:
    name = tensor.removeprefix(PEFT_PREFIX)
    return any(name.startswith(f"{module}.") for module in modules)


def _no_head_reason(adapter: Adapter, task: Task) -> str:
    """Why the adapter's head cannot be loaded; empty if it can."""
    source = adapter.task
    if not source.head.labels:
        return "it has none of its own"
    if (source.type, source.head.auto_class) != (task.type, task.head.auto_class):
        return f"it is for {source.type}"
    if source.head.pooling != task.head.pooling:
        return f"it reads {source.head.reads}, and this recipe's head {task.head.reads}"
    same_labels = (source.head.labels, source.head.problem_type) == (task.head.labels, task.head.problem_type)
    return "" if same_labels else f"it has other labels ({', '.join(source.head.labels)})"


def _check_shapes(adapter: Adapter, loaded: Tensors, fresh: Tensors) -> None:
    with ErrorCollector() as errors:
        for name, tensor in loaded.items():
            if tensor.shape != fresh[name].shape:
                shapes = f"{tuple(tensor.shape)} in {adapter}, and {tuple(fresh[name].shape)} here"
                errors.add(f"{name.removeprefix(PEFT_PREFIX)} is {shapes}.", key=RECIPE_KEY)


def _check_loaded(adapter: Adapter, loaded: Tensors, current: Tensors) -> None:
    """Compare what PEFT has loaded with the file, bit by bit."""
    missing = [
        name
        for name, tensor in loaded.items()
        if not current[name].detach().cpu().equal(tensor.to(current[name].dtype))
    ]
    if missing:
        names = ", ".join(name.removeprefix(PEFT_PREFIX) for name in missing[:3])
        raise IntegrityError(f"{adapter} cannot be started from: PEFT did not load {names}. Please report this.")

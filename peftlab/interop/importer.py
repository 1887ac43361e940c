"""Import an adapter that plain PEFT saved: publish it if peftlab and PEFT compute the same logits."""

import importlib.metadata
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from peftlab.base import BaseFiles, find_base
from peftlab.errors import BaseNotFoundError, ErrorCollector
from peftlab.interop.head_layout import ImportTask, check_length, check_widths, inspect_model, parse_import_task
from peftlab.interop.import_writer import ImportWriter, describe_errors
from peftlab.interop.peft_files import SavedAdapter, find_saved_adapter
from peftlab.recipe import BaseSection
from peftlab.store import Adapter, ImportInfo, Store


@dataclass(frozen=True)
class Imported:
    """A published adapter that was trained elsewhere; `origin` says where it came from, and how it was compared."""

    adapter: Adapter
    base: BaseFiles
    origin: ImportInfo

    @property
    def warnings(self) -> Sequence[str]:
        """What the user of the adapter should know."""
        return self.origin.notes

    @property
    def difference(self) -> float:
        """The largest difference between the logits of peftlab and of plain PEFT, on random tokens."""
        return self.origin.difference

    @property
    def largest_logit(self) -> float:
        """The largest of these logits."""
        return self.origin.largest_logit


def import_adapter(
    source: str | Path,
    name: str,
    *,
    task: str,
    labels: Sequence[str] | None = None,
    multi_label: bool = False,
    threshold: float | None = None,
    base: str | None = None,
    max_length: int | None = None,
    revision: str | None = None,
    store: str | Path = "adapters",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> Imported:
    """Publish an adapter that plain PEFT saved, after comparing its logits here with those of PEFT.

    Args:
        source: A folder with adapter_config.json and adapter_model.safetensors, or the Hub id of one.
        name: Its name in the store.
        task: token-classification, text-classification, regression or question-answering.
        labels: The label of each output of its head, in order; tags (O, B-PER, …) for token-classification.
        multi_label: As in a recipe for text-classification.
        threshold: As in a recipe for text-classification.
        base: Folder, Hub id or packaged model; None takes the one that the adapter's configuration names.
        max_length: The longest input in tokens; None for the longest that the base takes.
        revision: Hub branch, tag or commit of `source`.
        store: Folder of the store.
        device: Where to compare: auto, cpu, cuda or mps.
        trust_remote_code: Run Python code that comes with the base.

    Raises:
        AdapterNotFoundError: `source` is not found, or `name` is not a valid name.
        BaseNotFoundError: its base is not found, or not named.
        DeviceNotFoundError: there is no such device.
        IntegrityError: it cannot be read or served, does not fit the base, or its logits differ from plain PEFT's.
        RecipeError: task, labels or options are wrong; lists every problem.
        StoreError: the store cannot be written.
    """
    started, adapter_store = time.monotonic(), Store(store)
    adapter_store.versions(name)  # raises for an invalid name before anything is searched
    saved = find_saved_adapter(str(source), revision)
    import_task = parse_import_task(task, labels, multi_label=multi_label, threshold=threshold, saved=saved)
    base_files, warnings = _find_base(saved, base, trust_remote_code)
    with describe_errors(f"base '{base_files.model}' cannot be loaded"):
        inputs = import_task.task.inputs_class.load(base_files, trust_remote_code=trust_remote_code)
        layout = inspect_model(import_task.task, base_files, inputs, trust_remote_code=trust_remote_code)
    with ErrorCollector() as errors:
        check_widths(import_task.task, saved.tensors, layout, errors)
        check_length(max_length, layout, errors)
    writer = ImportWriter(
        saved=saved,
        import_task=import_task,
        base_files=base_files,
        inputs=inputs,
        layout=layout,
        warnings=[*warnings, *_describe_changes(saved, import_task)],
        max_length=max_length or layout.max_length,
        device=device,
        trust_remote_code=trust_remote_code,
        started=started,
    )
    adapter = adapter_store.publish(name, lambda folder: writer.write(name, folder))
    origin = adapter.manifest.imported
    assert origin
    return Imported(adapter, base_files, origin)


def _find_base(saved: SavedAdapter, base: str | None, trust_remote_code: bool) -> tuple[BaseFiles, list[str]]:
    """Find the base that the user or the adapter names; return it with warnings about it.

    Raises:
        BaseNotFoundError: it is not found, or the adapter names none.
    """
    named, revision = (saved.config.get(key) for key in ("base_model_name_or_path", "revision"))
    model = base or named
    if not (isinstance(model, str) and model):
        raise BaseNotFoundError(
            f"'{saved.source}' does not name the base that it was trained on. Name it: --base MODEL"
        )
    revision = None if base or not isinstance(revision, str) else revision
    section = BaseSection(model=model, revision=revision, trust_remote_code=trust_remote_code)
    advice = "" if base else f"'{saved.source}' names it as its base; name another place with --base."
    base_files = _find_base_files(section, advice)
    if base_files.source == "local folder":
        base_files = replace(base_files, model=str(base_files.folder.absolute()))
    warnings = [f"'{saved.source}' does not say which weights its base had in training: those found here are used."]
    if revision and base_files.revision != revision:
        found = base_files.revision or "an unknown revision"
        warnings.append(f"it names revision '{revision}' of its base, but {found} was found.")
    if base and named and named != base:
        warnings.append(f"it names another base, '{named}'.")
    return base_files, warnings


def _find_base_files(section: BaseSection, advice: str) -> BaseFiles:
    """Find a base at its revision, or else at any revision, as for adapters of the store."""
    try:
        return find_base(section)
    except BaseNotFoundError as error:
        if section.revision:
            return _find_base_files(section.model_copy(update={"revision": None}), advice)
        raise BaseNotFoundError(f"{error}\n{advice}".strip()) from None


def _describe_changes(saved: SavedAdapter, import_task: ImportTask) -> list[str]:
    """A sentence for each difference between the saved adapter and the published one."""
    changes, task, order = [], import_task.task, import_task.order
    if saved.unknown_keys:
        version = importlib.metadata.version("peft")
        changes.append(
            f"PEFT {version} does not know these keys of its configuration: {', '.join(saved.unknown_keys)}."
        )
    if order and order != sorted(order):
        changes.append(f"the outputs of its head are in another order now: {', '.join(task.head.labels)}.")
    if task.options.get("token_types") is False:
        changes.append("PEFT's class for question answering gives the base no token types; peftlab does the same here.")
    return changes

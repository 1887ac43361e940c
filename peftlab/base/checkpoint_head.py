"""A head that the base's checkpoint already has: whether it is there, and whether a task can continue it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from peftlab.base.lookup import BaseFiles
from peftlab.errors import ErrorCollector, IntegrityError
from peftlab.imports import transformers
from peftlab.recipe import BaseSection

if TYPE_CHECKING:
    from peftlab.tasks import Task

HEAD_KEY = "base.head"


@dataclass(frozen=True)
class LoadReport:
    """What a checkpoint has of a model.

    Attributes:
        new: Names of the newly initialized parameters.
        mismatched: Of those, the parameters that the checkpoint has in another shape: name → that shape.
        outside: Names of the parameters outside the backbone; empty for a language model.
        checkpoint_head: Whether the checkpoint has a complete head of this model class, of any number of outputs.
    """

    new: set[str]
    mismatched: Mapping[str, Sequence[int]] = field(default_factory=dict)
    outside: frozenset[str] = frozenset()
    checkpoint_head: bool = False

    @classmethod
    def from_transformers(cls, loading_info: Mapping[str, Any]) -> Self:
        """Read the loading info of `from_pretrained`."""
        mismatched = {name: tuple(shape) for name, shape, _ in loading_info["mismatched_keys"]}
        return cls(set(loading_info["missing_keys"]) | mismatched.keys(), mismatched)

    def with_head(self, outside: set[str], files: BaseFiles) -> Self:
        """The report with the parameters outside the backbone.

        Raises:
            IntegrityError: a tensor of the backbone has another shape than the configuration says.
        """
        if wrong := sorted(self.mismatched.keys() - outside):
            raise IntegrityError(
                f"base '{files.model}' in {files.folder} is not consistent: by its config.json, {wrong[0]} has another "
                f"shape than {self.mismatched[wrong[0]]}, which is that of its weights file."
            )
        is_complete = outside.isdisjoint(self.new - self.mismatched.keys())
        return replace(self, outside=frozenset(outside), checkpoint_head=bool(outside) and is_complete)


def head_note(files: BaseFiles, report: LoadReport, *, keep_head: bool) -> str:
    """A sentence on what became of a head that the checkpoint has; empty if it has none."""
    if not report.checkpoint_head:
        return ""
    modules = ", ".join(sorted({name.partition(".")[0] for name in report.outside}))
    head = f"The base's checkpoint has a head ({modules}{_labels_in_words(files)})"
    if keep_head:
        return f"{head}: training continues it."
    return f"{head}: it is replaced by a new one. To continue it, set {HEAD_KEY}: checkpoint."


def require_checkpoint_head(section: BaseSection, files: BaseFiles, task: "Task", report: LoadReport) -> None:
    """Check that the checkpoint has a head that `task` can continue.

    Raises:
        RecipeError: it has none, or one with other labels.
    """
    with ErrorCollector() as errors:
        hint = f"Take {HEAD_KEY}: new, which trains a new head."
        if not task.head.labels:
            message = f"{task.type} uses the head of the checkpoint anyway, and does not train it."
            errors.add(message, key=HEAD_KEY, hint="Remove the key.")
        elif not report.checkpoint_head or not _is_of_class(files, task):
            message = f"the checkpoint of '{section.model}' has no head for {task.type}."
            errors.add(message, key=HEAD_KEY, hint=hint)
        elif not _has_labels(files, task, report):
            message = (
                f"the checkpoint's head{_labels_in_words(files)} does not fit this task, whose outputs are: "
                f"{', '.join(task.head.labels)}."
            )
            errors.add(message, key=HEAD_KEY, hint=f"Set task.labels to the same names in the same order. {hint}")


def _is_of_class(files: BaseFiles, task: "Task") -> bool:
    """Whether the checkpoint was saved from the task's model class: other classes have heads of the same names."""
    saved = files.config.get("architectures") or []
    mapping = getattr(transformers, task.head.auto_class)._model_mapping._model_mapping
    known = mapping.get(files.config.get("model_type"))
    return not saved or known is None or known in saved


def _has_labels(files: BaseFiles, task: "Task", report: LoadReport) -> bool:
    """Whether the head's outputs are those of the task, in the same order, or have no names."""
    names = _label_names(files)
    return not report.mismatched and (names is None or names == task.head.labels)


def _label_names(files: BaseFiles) -> list[str] | None:
    """The names of the head's outputs in the base's configuration; None if they are only numbered."""
    names = {int(index): str(name) for index, name in (files.config.get("id2label") or {}).items()}
    if all(name == f"LABEL_{index}" for index, name in names.items()):
        return None
    return [names[index] for index in sorted(names)]


def _labels_in_words(files: BaseFiles) -> str:
    names = _label_names(files)
    return "" if names is None else f", for {', '.join(names)}"

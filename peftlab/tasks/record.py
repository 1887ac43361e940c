"""What peftlab knows about a task type besides the task itself: one record per type."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peftlab.data import Row
from peftlab.errors import ErrorCollector
from peftlab.recipe.tasks import TaskFields
from peftlab.tasks.task import Task

SectionCompleter = Callable[[Any, str, Mapping[str, Any], ErrorCollector], TaskFields]
"""A section, the base's name, its `config.json` and the list of errors → the section with nothing left open."""


def _default_example(task: Any) -> str:
    return '"Your text"'


def _no_help(task: Any) -> str:
    return ""


def _text_column(task: Any) -> tuple[str, ...]:
    return ("text",)


def _no_inspection(task: Any, rows: Sequence[Row], errors: ErrorCollector) -> None:
    return


@dataclass(frozen=True)
class ImportedHead:
    """How adapters of this task that PEFT saved are imported.

    `peft_task_type` is PEFT's word for the task. `labels` says what names the outputs: tags, labels or nothing (none).
    `num_outputs` are two trial sizes of the head, one if its size is fixed. `options` are those of `build`, from the
    label names, multi_label, the threshold and the adapter's configuration.
    """

    peft_task_type: str
    labels: str = "none"
    num_outputs: Sequence[int] = (2, 3)
    options: Callable[..., dict[str, Any]] = lambda names, multi_label, threshold, config: {}


@dataclass(frozen=True)
class TaskRecord:
    """One task type.

    Args:
        section: The class of its recipe section; its `type` is the task type.
        build: Makes the task from the keys of its section, or from `labels` and `Task.options` of a published adapter.
        complete_section: Sets what the section leaves to the base model, before it is loaded; None if nothing is left.
        pipeline_tag: The task's name on the Hugging Face Hub, or a function of the task that returns it.
        display: The name of the form in which `peftlab predict` prints predictions; fields prints any.
        formats: Further output formats of predictions, such as conll.
        example: Arguments for a first `peftlab predict ADAPTER`.
        output_help: How the head's outputs are read without peftlab, if not by the largest logit.
        input_columns: The columns of a row for prediction; a plain string is the first of them.
        imported: How adapters from elsewhere are imported; None if they cannot be.
        import_refusal: Why they cannot be, as a sentence without the task's name.
        inspect_rows: Called with the task and all rows of a split before they are read, for what a single row does not
            show, such as the separator of labels.
        legacy_options: Options for `build` that adapters of earlier versions lack.
    """

    section: type[TaskFields]
    build: Callable[..., Task]
    complete_section: SectionCompleter | None = None
    pipeline_tag: Callable[[Any], str] | str = "text-classification"
    display: str = "fields"
    formats: tuple[str, ...] = ()
    example: Callable[[Any], str] = _default_example
    output_help: Callable[[Any], str] = _no_help
    input_columns: Callable[[Any], tuple[str, ...]] = _text_column
    imported: ImportedHead | None = None
    import_refusal: str = ""
    inspect_rows: Callable[[Any, Sequence[Row], ErrorCollector], None] = _no_inspection
    legacy_options: Mapping[str, Any] = field(default_factory=dict)

    def hub_tag(self, task: Task) -> str:
        """The name of `task` on the Hub."""
        return self.pipeline_tag if isinstance(self.pipeline_tag, str) else self.pipeline_tag(task)

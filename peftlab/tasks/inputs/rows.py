"""Convert inputs for prediction (strings, columns or rows) to examples; invalid inputs are errors with their
location."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from peftlab.data import Row
from peftlab.data.rows import RowError, find_surrogate
from peftlab.errors import ErrorCollector
from peftlab.tasks.registry import TASKS
from peftlab.tasks.task import Task

InputRow = str | Mapping[str, Any] | Row
"""A text, or the input columns of a task."""


def read_input_rows(
    asked: Iterable[tuple[str, InputRow]], tasks: Mapping[str, Task], errors: ErrorCollector, *, first: int = 1
) -> Iterator[Any]:
    """The example of each (adapter name, input); `first` is the number of the first input.

    Inputs that do not fit the task of the adapter are left out and added to `errors`.
    """
    for number, (name, one) in enumerate(asked, start=first):
        row = _as_row(one, tasks[name], f"row {number}")
        try:
            if invalid := find_surrogate(row.fields):
                raise RowError(f"expected text; found {invalid}, which is half of a character (a surrogate)")
            yield tasks[name].read_input(row)
        except RowError as error:
            errors.add(str(error), where=row.where, key=name if len(tasks) > 1 else "")


def _as_row(asked: InputRow, task: Task, where: str) -> Row:
    if isinstance(asked, Row):
        return asked
    fields = {TASKS[task.type].input_columns(task)[0]: asked} if isinstance(asked, str) else dict(asked)
    return Row(fields, where)

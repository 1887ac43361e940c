"""Print errors, tables, scores and progress bars."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from peftlab.errors import RecipeError

if TYPE_CHECKING:
    from peftlab.runtime import Evaluation
    from peftlab.tasks import Confusion, Scores

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

MAX_CONFUSION_LABELS = 12  # a confusion matrix of more labels does not fit a terminal
MAX_MISTAKES = 10
BAR_MIN_ROWS = 300  # with fewer rows, prediction is too quick for a bar


def print_error(message: str) -> None:
    """Print an error message on standard error."""
    err.print(Text.assemble(("error: ", "bold red"), message))


def print_notes(notes: Iterable[str]) -> None:
    """Print notes for the user on standard error, so that standard output stays readable for programs."""
    for note in notes:
        err.print(Text(f"note: {note}", "yellow"))


def print_recipe_error(error: RecipeError) -> None:
    """Print all errors of a recipe: the place, the key, the message and a hint."""
    count = len(error.errors)
    err.print(Text(f"{count} problem{'s' if count > 1 else ''}; nothing was started.", "bold red"))
    for issue in error.errors:
        err.print()
        place = "  ".join(part for part in (issue.where, issue.key) if part)
        if place:
            err.print(Text(f"  {place}", "bold"))
        err.print(Text(f"    {issue.message}"))
        if issue.hint:
            err.print(Text(f"    {issue.hint}", "dim"))


def table(title: str, *columns: str) -> Table:
    """Make a table whose first column is text and whose other columns are numbers."""
    new_table = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    new_table.add_column(columns[0], header_style="dim", no_wrap=True)
    for column in columns[1:]:
        new_table.add_column(column, header_style="dim", justify="right", no_wrap=True)
    return new_table


def score_tables(title: str, scores: "Scores") -> Group:
    """Show scores per label and in total, and the confusion of labels."""
    columns = list(next(iter(scores.by_label.values()), {}))
    total = {**scores.values, "support": sum(int(row["support"]) for row in scores.by_label.values())}
    made = table(title, "", *(columns or scores.values))
    for label, row in scores.by_label.items():
        made.add_row(escape(label), *(cell(row[column]) for column in columns))
    shared = all(column in total for column in columns)
    if shared:
        made.add_section()
        made.add_row("all", *(cell(total[column]) for column in columns or scores.values), style="bold")
    others = {name: value for name, value in scores.values.items() if not shared or (columns and name not in columns)}
    parts: list[RenderableType] = [made]
    if others:
        line = "   ".join(f"[bold]{name} {cell(value)}[/]" for name, value in others.items())
        parts += [Text.from_markup(f"\n{line}")]
    parts += [Text(f"{name}: {signature}", style="dim") for name, signature in scores.signatures.items()]
    if scores.calibration:
        parts += [Text(f"\n{scores.calibration}", style="dim")]
    if scores.confusion and len(scores.confusion.labels) > 1:
        parts += [Text(""), confusion_table(scores.confusion)]
    return Group(*parts)


def scores_by_adapter(title: str, evaluated: Mapping[str, "Evaluation"]) -> Table:
    """Show the main score of each adapter on its own rows."""
    made = table(escape(title), "adapter", "task", "rows", "score", "")
    made.columns[1].justify = made.columns[3].justify = "left"
    for name, evaluation in evaluated.items():
        score = evaluation.task.metric.name
        made.add_row(
            name, evaluation.task.type, f"{evaluation.ledger.used:,}", score, cell(evaluation.scores.values[score])
        )
    return made


def confusion_table(confusion: "Confusion") -> Table:
    """Show the confusion matrix, with gold labels as rows; for many labels, the most frequent mistakes."""
    if len(confusion.labels) > MAX_CONFUSION_LABELS:
        return _mistakes_table(confusion)
    made = table("Gold ↓ predicted →", "", *map(escape, confusion.labels))
    for i, (label, row) in enumerate(zip(confusion.labels, confusion.counts, strict=True)):
        cells = [f"[bold green]{count}[/]" if i == j else (str(count) if count else "·") for j, count in enumerate(row)]
        made.add_row(escape(label), *cells)
    return made


def _mistakes_table(confusion: "Confusion") -> Table:
    named = list(zip(confusion.labels, confusion.counts, strict=True))
    mistakes = [
        (count, gold, predicted)
        for gold, row in named
        for predicted, count in zip(confusion.labels, row, strict=True)
        if count and predicted != gold
    ]
    made = table("Most frequent mistakes", "gold", "predicted", "times", "of")
    for count, gold, predicted in sorted(mistakes, key=lambda mistake: -mistake[0])[:MAX_MISTAKES]:
        made.add_row(escape(gold), escape(predicted), str(count), str(sum(dict(named)[gold])))
    return made


def cell(value: Any) -> str:
    """Format a score with three decimals, a count with separators, and any other value as text."""
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


@contextmanager
def bar_for(description: str, *, quiet: bool = False, console: Console = err) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar in a terminal while the block runs; yields the function that updates it (done, total)."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # do not change output for programs
    ) as bar:
        bar_id = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(bar_id, completed=done, total=total)


def prediction_bar(rows: int) -> AbstractContextManager[Callable[[int, int], None]]:
    """Show a progress bar for predictions: below them if they go to the terminal, else on standard error."""
    console = out if sys.stdout.isatty() else err
    return bar_for("predicting", quiet=rows < BAR_MIN_ROWS or not console.file.isatty(), console=console)


def megabytes(size: int) -> str:
    """Format a number of bytes in megabytes."""
    return f"{size / 1e6:.1f} MB"

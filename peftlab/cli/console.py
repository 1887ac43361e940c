"""How things look: errors, tables, scores."""

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

MOST_ACROSS = 12  # labels up to which their confusion fits a terminal
MISTAKES_SHOWN = 10
BAR_MIN_ROWS = 300  # rows whose answers take long enough for a bar


def print_error(message: str) -> None:
    """One sentence, or a few lines, on standard error."""
    err.print(Text.assemble(("error: ", "bold red"), message))


def print_notes(notes: Iterable[str]) -> None:
    """Sentences that the user should know, on standard error, where no program reads."""
    for note in notes:
        err.print(Text(f"note: {note}", "yellow"))


def print_recipe_error(error: RecipeError) -> None:
    """Every problem of a recipe: where, which key, what, and what to do next."""
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
    """A table whose first column is text and whose others are numbers."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(columns[0], header_style="dim", no_wrap=True)
    for column in columns[1:]:
        made.add_column(column, header_style="dim", justify="right", no_wrap=True)
    return made


def score_tables(title: str, scores: "Scores") -> Group:
    """Scores by label and over all, and which labels are taken for which."""
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
    if scores.confusion and len(scores.confusion.labels) > 1:
        parts += [Text(""), confusion_table(scores.confusion)]
    return Group(*parts)


def scores_by_adapter(title: str, evaluated: Mapping[str, "Evaluation"]) -> Table:
    """The main score of each adapter on its rows."""
    made = table(escape(title), "adapter", "task", "rows", "score", "")
    made.columns[1].justify = made.columns[3].justify = "left"
    for name, mine in evaluated.items():
        score = mine.task.main_score
        made.add_row(name, mine.task.type, f"{mine.ledger.used:,}", score, cell(mine.scores.values[score]))
    return made


def confusion_table(confusion: "Confusion") -> Table:
    """Gold labels down, predicted ones across; of very many labels, the pairs most often mistaken."""
    if len(confusion.labels) > MOST_ACROSS:
        return _mistakes_table(confusion)
    made = table("Gold ↓ predicted →", "", *map(escape, confusion.labels))
    for i, (label, row) in enumerate(zip(confusion.labels, confusion.counts, strict=True)):
        cells = [f"[bold green]{count}[/]" if i == j else (str(count) if count else "·") for j, count in enumerate(row)]
        made.add_row(escape(label), *cells)
    return made


def _mistakes_table(confusion: "Confusion") -> Table:
    named = list(zip(confusion.labels, confusion.counts, strict=True))
    mistakes = [
        (count, gold, told)
        for gold, row in named
        for told, count in zip(confusion.labels, row, strict=True)
        if count and told != gold
    ]
    made = table("Most often mistaken", "gold", "for", "times", "of")
    for count, gold, told in sorted(mistakes, key=lambda mistake: -mistake[0])[:MISTAKES_SHOWN]:
        made.add_row(escape(gold), escape(told), str(count), str(sum(dict(named)[gold])))
    return made


def cell(value: Any) -> str:
    """A score with three digits, a count with separators, anything else as it is."""
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


@contextmanager
def bar_for(what: str, *, quiet: bool = False, console: Console = err) -> Iterator[Callable[[int, int], None]]:
    """A bar while something long goes on, in a terminal; gives the function that moves it."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # what a program reads is left alone
    ) as bar:
        shown = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(shown, completed=done, total=total)


def prediction_bar(rows: int) -> AbstractContextManager[Callable[[int, int], None]]:
    """The bar beside the answers to many rows: below them where they go to the terminal, else on standard error."""
    console = out if sys.stdout.isatty() else err
    return bar_for("predicting", quiet=rows < BAR_MIN_ROWS or not console.file.isatty(), console=console)


def megabytes(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e6:.1f} MB"

"""How things look: errors, tables, scores, highlighted entities."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from peftlab.data.markup import write_markup
from peftlab.errors import RecipeError

if TYPE_CHECKING:
    from peftlab.runtime import Answer, Bank

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red", "bright_cyan", "bright_magenta", "bright_green")


def print_error(message: str) -> None:
    """One sentence, or a few lines, on standard error."""
    err.print(Text.assemble(("error: ", "bold red"), message))


def print_problems(error: RecipeError) -> None:
    """Every problem of a recipe: where, which key, what, and what to do next."""
    count = len(error.problems)
    err.print(Text(f"{count} problem{'s' if count > 1 else ''}; nothing was started.", "bold red"))
    for problem in error.problems:
        err.print()
        place = "  ".join(part for part in (problem.where, problem.key) if part)
        if place:
            err.print(Text(f"  {place}", "bold"))
        err.print(Text(f"    {problem.message}"))
        if problem.hint:
            err.print(Text(f"    {problem.hint}", "dim"))


def table(title: str, *columns: str) -> Table:
    """A table whose first column is text and whose others are numbers."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(columns[0], header_style="dim", no_wrap=True)
    for column in columns[1:]:
        made.add_column(column, header_style="dim", justify="right", no_wrap=True)
    return made


def score_table(title: str, overall: Mapping[str, float], by_label: Mapping[str, Mapping[str, float]]) -> Table:
    """Scores by label, and over all of them in the last line."""
    columns = list(next(iter(by_label.values()), {**overall, "support": 0}))
    made = table(title, "", *columns)
    for label, values in by_label.items():
        made.add_row(escape(label), *(cell(values[column]) for column in columns))
    total = {**overall, "support": sum(int(values["support"]) for values in by_label.values())}
    made.add_section()
    made.add_row("all", *(cell(total[column]) for column in columns), style="bold")
    return made


def cell(value: Any) -> str:
    """A score with three digits, a count with separators, anything else as it is."""
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def megabytes(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e6:.1f} MB"


def entities_text(text: str, entities: list[dict[str, Any]], labels: list[str]) -> Text:
    """The text with its entities coloured and labelled; as inline markup where there is no colour to be had."""
    if not out.color_system:
        return Text(write_markup(text, ((e["start"], e["end"], e["label"]) for e in entities)))
    shown, end = Text(), 0
    for entity in entities:
        colour = COLOURS[labels.index(entity["label"]) % len(COLOURS)]
        shown.append(text[end : entity["start"]])
        shown.append(f" {entity['text']} ", style=f"black on {colour}")
        shown.append(f"{entity['label']} ", style=f"bold black on {colour}")
        end = entity["end"]
    return shown.append(text[end:])


def print_answers(answers: Iterable["Answer"], bank: "Bank") -> None:
    """Each answer on a line of its own, after its adapter's name where there are several."""
    for answer in answers:
        fields = answer.as_dict()
        shown = entities_text(fields["text"], fields["entities"], bank.labels(answer.adapter))
        if len(bank.names) > 1:
            width = max(map(len, bank.names))
            shown = Text.assemble((f"{answer.adapter:<{width}}  ", "dim"), shown)
        out.print(shown)

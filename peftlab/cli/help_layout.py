"""Help texts: options and commands in sections, an example for every command, and the list of exit codes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click

from peftlab.errors import PeftlabError

SUCCESS = 0
GENERAL = "General options"
MAX_UNGROUPED_OPTIONS = 8


class Option(click.Option):
    """An option that belongs to a section of the help."""

    def __init__(self, *args: Any, section: str = GENERAL, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.section = section


def option(*declarations: str, section: str = GENERAL, **attributes: Any) -> Callable[[Any], Any]:
    """Like `click.option`, with the section of the help that lists the option."""
    return click.option(*declarations, cls=Option, section=section, **attributes)


class Argument(click.Argument):
    """A positional argument with a description (click has had one only since 8.5)."""

    def __init__(self, *args: Any, description: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.description = description


def argument(*declarations: str, description: str, **attributes: Any) -> Callable[[Any], Any]:
    """Like `click.argument`, with a description for the help."""
    return click.argument(*declarations, cls=Argument, description=description, **attributes)


class Command(click.Command):
    """A command whose help has an example, describes arguments, and lists many options in sections."""

    def __init__(self, *args: Any, example: str = "", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.example = example

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the description, then the example."""
        super().format_help_text(ctx, formatter)
        write_example(self.example, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the arguments, then the options, in sections if there are many."""
        params = self.get_params(ctx)
        arguments = [(param.make_metavar(ctx), param.description) for param in params if isinstance(param, Argument)]
        if arguments:
            with formatter.section("Arguments"):
                formatter.write_dl(arguments)
        options = [param for param in params if isinstance(param, click.Option)]
        for title, section in _group_options(options).items():
            with formatter.section(title):
                formatter.write_dl([record for param in section if (record := param.get_help_record(ctx))])


class Group(click.Group):
    """A group whose help lists its commands in sections, in the order of `sections`, each with an example."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, example: str = "", sections: Mapping[str, Sequence[str]], **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.example = example
        self.sections = sections

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the description, then the example."""
        super().format_help_text(ctx, formatter)
        write_example(self.example, formatter)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order of the help."""
        return [name for names in self.sections.values() for name in names]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands with the first sentence of their descriptions, section by section."""
        width = max(map(len, self.commands))
        for title, names in self.sections.items():
            with formatter.section(title):
                limit = formatter.width - formatter.current_indent - width - 2
                rows = [(name.ljust(width), self.commands[name].get_short_help_str(limit)) for name in names]
                formatter.write_dl(rows)


def write_example(example: str, formatter: click.HelpFormatter) -> None:
    """Write the lines of an example as they are, without wrapping them."""
    if example:
        with formatter.section("Example"):
            for line in example.splitlines():
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def exit_codes() -> dict[int, str]:
    """Return the meaning of each exit code, read from `PeftlabError` and the classes derived from it."""
    reasons: dict[int, dict[str, None]] = {}
    for kind in _error_classes(PeftlabError):
        if not kind.__module__.startswith("peftlab."):
            continue  # defined by another package
        reasons.setdefault(kind.exit_code, {})[kind.exit_reason] = None
    return {SUCCESS: "success", **{code: ", or ".join(reasons[code]) for code in sorted(reasons)}}


def write_exit_codes(formatter: click.HelpFormatter) -> None:
    """Write the list of exit codes."""
    with formatter.section("Exit codes"):
        formatter.write_dl([(str(code), meaning) for code, meaning in exit_codes().items()])


def _error_classes(base: type[PeftlabError]) -> Iterable[type[PeftlabError]]:
    yield base
    for derived in base.__subclasses__():
        yield from _error_classes(derived)


def _group_options(options: Sequence[click.Option]) -> dict[str, list[click.Option]]:
    """Group options by section, general options last; a few options stay in one section."""
    if len(options) <= MAX_UNGROUPED_OPTIONS:
        return {"Options": list(options)}
    sections: dict[str, list[click.Option]] = {}
    for param in options:
        sections.setdefault(param.section if isinstance(param, Option) else GENERAL, []).append(param)
    general = sections.pop(GENERAL, [])
    return {**sections, GENERAL: general}

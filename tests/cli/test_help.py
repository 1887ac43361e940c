"""Help texts of all commands: complete, in sections, with an example each, and no line longer than the terminal."""

import click
import pytest
from click.testing import CliRunner

from peftlab import errors
from peftlab.cli import cli
from peftlab.cli.help_layout import MAX_UNGROUPED_OPTIONS, exit_codes
from peftlab.errors import PeftlabError

ENDINGS = (".", ")", '"', "]")  # of a sentence, an example in brackets or quotes, or a default


def walk(command, path=()):
    """Yield every command with its path; the root has an empty path."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, (*path, name))


COMMANDS = dict(walk(cli))


def help_text(path, columns=80):
    result = CliRunner().invoke(cli, [*path, "--help"], prog_name="peftlab", terminal_width=columns)
    assert result.exit_code == 0
    return result.output


@pytest.fixture(params=COMMANDS, ids=" ".join)
def path(request):
    return request.param


def test_help_has_description_and_runnable_example(path):
    command = COMMANDS[path]
    assert command.help
    for line in command.example.splitlines():
        assert f"  {line}\n" in help_text(path)
        words = line.split()
        assert words[0] == "peftlab"
        if path:
            assert tuple(words[1 : 1 + len(path)]) == path


def test_example_is_accepted_by_parser(path):
    for line in COMMANDS[path].example.splitlines():
        words = [word.strip('"') for word in line.split(" > ")[0].split()[1:]]
        chosen = next(names for names in sorted(COMMANDS, key=len, reverse=True) if tuple(words[: len(names)]) == names)
        COMMANDS[chosen].make_context(chosen[-1], words[len(chosen) :])


def test_help_fits_80_columns(path):
    assert all(len(line) <= 80 for line in help_text(path).splitlines())


def test_help_lists_every_option_with_description(path):
    text = help_text(path)
    for param in COMMANDS[path].params:
        if isinstance(param, click.Option):
            assert param.help
            assert all(name in text for name in param.opts)
            assert param.help.strip().endswith(ENDINGS), param.help


def test_help_describes_every_argument(path):
    text = help_text(path)
    for param in COMMANDS[path].params:
        if isinstance(param, click.Argument):
            assert param.description.endswith(".")
            assert "".join(param.description.split()) in "".join(text.split())  # lines break at hyphens, too


def test_many_options_are_grouped_in_sections(path):
    command, text = COMMANDS[path], help_text(path)
    if sum(isinstance(param, click.Option) for param in command.params) >= MAX_UNGROUPED_OPTIONS:  # and --help
        assert "\nOptions:\n" not in text
        assert sum(line.endswith(":") and not line.startswith(" ") for line in text.splitlines()) >= 4


def test_sections_of_group_list_every_command_once(path):
    command = COMMANDS[path]
    if isinstance(command, click.Group):
        listed = [name for names in command.sections.values() for name in names]
        assert sorted(listed) == sorted(command.commands)
        assert "..." not in help_text(path).partition("\n")[2]  # no description is shortened


def test_exit_codes_cover_all_error_classes():
    codes = exit_codes()
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PeftlabError)]
    assert set(codes) == {0, *(kind.exit_code for kind in kinds)} == {0, 1, 2, 3, 4, 5, 6, 7, 8, 130}
    for kind in kinds:
        assert kind.exit_reason in codes[kind.exit_code]
        assert ("exit_code" in vars(kind)) == ("exit_reason" in vars(kind))


def test_exit_codes_are_listed_in_help():
    text = " ".join(help_text(()).split())
    for code, meaning in exit_codes().items():
        assert f"{code} {meaning}" in text

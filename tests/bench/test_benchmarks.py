"""The commands in benchmarks/: each can be called with the options that it declares."""

import importlib
import inspect
from pathlib import Path

import click
import pytest

import benchmarks

COMMANDS = [
    file.stem
    for file in sorted(Path(benchmarks.__file__).parent.glob("*.py"))
    if "@click.command" in file.read_text(encoding="utf8")
]


@pytest.mark.parametrize("name", COMMANDS)
def test_options_match_parameters(name):
    commands = [
        value
        for value in vars(importlib.import_module(f"benchmarks.{name}")).values()
        if isinstance(value, click.Command)
    ]
    assert commands
    for command in commands:
        assert {option.name for option in command.params} == set(inspect.signature(command.callback).parameters)

"""The command line: each command parses its arguments, calls one function of the library, and prints the result."""

from peftlab.cli.app import cli, main

__all__ = ["cli", "main"]

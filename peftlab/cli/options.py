"""Options that several commands share, and callbacks that parse option values."""

from typing import Any, get_args

import click

from peftlab.cli.help_layout import option
from peftlab.recipe import DataSection, Quantization, parse_byte_size, parse_override

ROWS, BASE_MODEL, MEMORY, OUTPUT = "Rows", "Base model", "Memory for adapters", "Output"
FORMATS = get_args(DataSection.model_fields["format"].annotation)


def parse_size(_: click.Context, __: click.Parameter, size: str | None) -> int | None:
    """Callback of --memory: parse a size such as 2GiB into bytes."""
    try:
        return None if size is None else parse_byte_size(size)
    except ValueError as error:
        raise click.BadParameter(f"'{size}' {error}.") from None


def parse_names(_: click.Context, __: click.Parameter, text: str | None) -> list[str] | None:
    """Callback of an option that takes names: parse `A,B,C`."""
    return None if text is None else [name.strip() for name in text.split(",")]


def parse_columns(_: click.Context, __: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    """Callback of --column: parse `text=review` into {name of the task: name in the file}."""
    columns = {}
    for pair in pairs:
        expected, equals, actual = pair.partition("=")
        if not (expected and equals and actual):
            raise click.BadParameter(f"'{pair}' is not of the form NAME=COLUMN, as in text=review.")
        columns[expected] = actual
    return columns


def parse_overrides(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    """Callback of -o: parse `training.seed=1` into {dotted recipe key: value}."""
    try:
        return dict(parse_override(text) for text in texts)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def parse_seeds(_: click.Context, __: click.Parameter, text: str | None) -> list[int] | None:
    """Callback of --seeds: parse `1,2,3`."""
    if text is None:
        return None
    seeds = _parse_integers(text, "1,2,3")
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise click.BadParameter(f"'{text}' should hold numbers from 0 on, each once.")
    return seeds


def parse_counts(_: click.Context, __: click.Parameter, text: str) -> list[int]:
    """Callback of an option that takes numbers above 0: parse `1,4,16`."""
    counts = _parse_integers(text, "1,4,16")
    if min(counts) < 1:
        raise click.BadParameter(f"'{text}' should hold numbers from 1 on.")
    return counts


def parse_section(_: click.Context, param: click.Parameter, text: str) -> dict[str, Any]:
    """Callback of an option that takes a section of a recipe in YAML."""
    try:
        section = parse_override(f"{param.name}={text}")[1]
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if not isinstance(section, dict):
        raise click.BadParameter(f"'{text}' is not a section, as in '{{type: lora, r: 8}}'.")
    return section


def refuse_options(ctx: click.Context, names: tuple[str, ...], reason: str) -> None:
    """Refuse options that were typed although they have no effect.

    Raises:
        click.UsageError: one of the parameters `names` was typed; the message ends with `reason`.
    """
    for param in ctx.command.params:
        if param.name in names and ctx.get_parameter_source(param.name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{param.opts[0]} {reason}")


def _parse_integers(text: str, example: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"'{text}' is not a list of whole numbers, as in {example}.") from None


store_option = option("--store", default="adapters", show_default=True, metavar="DIR", help="Folder of the adapters.")
device_option = option(
    "--device",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    section=BASE_MODEL,
    help="Device to compute on; auto takes an accelerator if there is one.",
)
quantization_option = option(
    "--quantization",
    type=click.Choice(["none", *get_args(Quantization)]),
    section=BASE_MODEL,
    help="Quantization of the base model in memory. Default: the one that each adapter was trained with.",
)
precision_option = option(
    "--precision",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    section=BASE_MODEL,
    help="Floating-point type of an unquantized base model; auto means bf16 on a CPU with AMX, else fp32.",
)
trust_option = option(
    "--trust-remote-code",
    is_flag=True,
    section=BASE_MODEL,
    help="Run Python code that comes with the base model, if an adapter needs it.",
)
memory_option = option(
    "--memory",
    metavar="SIZE",
    callback=parse_size,
    section=MEMORY,
    help="Keep at most this size of adapters in memory, such as 2GiB; others are read from disk when a row needs them.",
)
slots_option = option(
    "--slots",
    type=click.IntRange(min=1),
    metavar="N",
    section=MEMORY,
    help="Keep at most N adapters ready on the device at a time.",
)
by_option = option(
    "--by",
    metavar="COLUMN",
    section=ROWS,
    help="Read the adapter of each row from this column, as name or name@version. Then omit ADAPTER.",
)
format_option = option(
    "--format",
    "data_format",
    default="auto",
    show_default=True,
    metavar="FORMAT",
    type=click.Choice(FORMATS),
    section=ROWS,
    help=f"Format of FILE: {', '.join(FORMATS)}.",
)
columns_option = option(
    "--column",
    "columns",
    multiple=True,
    metavar="NAME=COLUMN",
    callback=parse_columns,
    section=ROWS,
    help="Read the input NAME from a column of another name, as in text=review. Repeatable.",
)
group_by_option = option(
    "--group-by",
    metavar="COLUMN",
    section=ROWS,
    help="For a table with one word a row: the column that names the sentence.",
)
json_option = option("--json", "as_json", is_flag=True, section=OUTPUT, help="Print JSON for programs.")
override_option = option(
    "-o",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    callback=parse_overrides,
    help="Override a value of the recipe, as in -o training.learning_rate=5e-4. Paths are relative to the current "
    "folder. Repeatable.",
)

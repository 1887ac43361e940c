"""Options that several commands share."""

from typing import Any, get_args

import click

from peftlab.recipe import DataSection, Quantization, parse_byte_size, parse_override

store_option = click.option(
    "--store", default="adapters", show_default=True, metavar="DIR", help="Folder that holds the adapters."
)
device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    help="Where to compute.",
)
quantization_option = click.option(
    "--quantization",
    type=click.Choice(["none", *get_args(Quantization)]),
    help="Hold the base so, instead of as each adapter was tuned on.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")

trust_option = click.option(
    "--trust-remote-code", is_flag=True, help="Run Python code that comes with the base, if an adapter needs it."
)


def _bytes(_: click.Context, __: click.Parameter, size: str | None) -> int | None:
    try:
        return None if size is None else parse_byte_size(size)
    except ValueError as error:
        raise click.BadParameter(f"'{size}' {error}.") from None


memory_option = click.option(
    "--memory",
    metavar="SIZE",
    callback=_bytes,
    help="Hold at most so much of adapters in memory, as in 2GiB, and read the others again when a row needs them.",
)
precision_option = click.option(
    "--precision",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    help="What an unquantized base computes in; auto is bf16 on a CPU with AMX, else fp32.",
)
slots_option = click.option(
    "--slots",
    type=click.IntRange(min=1),
    metavar="N",
    help="Keep at most N adapters ready to answer at a time, on the device.",
)
by_option = click.option(
    "--by",
    metavar="COLUMN",
    help="Take the adapter of each row from this column: a name, or name@version. Then there is no ADAPTER.",
)
format_option = click.option(
    "--format",
    "data_format",
    default="auto",
    show_default=True,
    type=click.Choice(get_args(DataSection.model_fields["format"].annotation)),
    help="Format of FILE.",
)


def _columns(_: click.Context, __: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    named = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not (ours and equals and theirs):
            raise click.BadParameter(f"'{pair}' is not of the form ours=theirs, as in text=review.")
        named[ours] = theirs
    return named


columns_option = click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="OURS=THEIRS",
    callback=_columns,
    help="A column of FILE that has another name there, as in text=review.",
)


def _overrides(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    try:
        return dict(parse_override(text) for text in texts)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


override_option = click.option(
    "-o",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_overrides,
    help="Change a value of the recipe, as in -o training.learning_rate=5e-4; paths start at the current folder.",
)


def _whole_numbers(text: str, example: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"'{text}' is not a list of whole numbers, as in {example}.") from None


def read_seeds(_: click.Context, __: click.Parameter, text: str | None) -> list[int] | None:
    """Callback of a --seeds option: `1,2,3` → the numbers."""
    if text is None:
        return None
    seeds = _whole_numbers(text, "1,2,3")
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise click.BadParameter(f"'{text}' should hold numbers from 0 on, each once.")
    return seeds


def read_counts(_: click.Context, __: click.Parameter, text: str) -> list[int]:
    """Callback of an option that takes numbers above 0: `1,4,16` → the numbers."""
    counts = _whole_numbers(text, "1,4,16")
    if min(counts) < 1:
        raise click.BadParameter(f"'{text}' should hold numbers from 1 on.")
    return counts


def read_section(_: click.Context, parameter: click.Parameter, text: str) -> dict[str, Any]:
    """Callback of an option that takes a section of a recipe in YAML."""
    try:
        section = parse_override(f"{parameter.name}={text}")[1]
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if not isinstance(section, dict):
        raise click.BadParameter(f"'{text}' is not a section, as in '{{type: lora, r: 8}}'.")
    return section

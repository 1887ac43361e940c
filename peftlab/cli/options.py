"""Options that several commands share."""

from typing import Any

import click

from peftlab.recipe import parse_override

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
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


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

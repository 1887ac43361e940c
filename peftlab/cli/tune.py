"""`peftlab tune`."""

from typing import Any

import click

from peftlab.cli.options import device_option, override_option, store_option


@click.command()
@click.argument("recipe_path", metavar="RECIPE")
@override_option
@store_option
@device_option
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of an interrupted run.")
def tune(recipe_path: str, overrides: dict[str, Any], store: str, device: str, resume: bool) -> None:
    """Train the adapter that RECIPE asks for, and publish it to the store.

    Only small adapter weights and the head are trained; the base stays as it is. Ctrl-C stops after a checkpoint.
    """
    from peftlab.cli.tuning_display import TuningDisplay, print_result
    from peftlab.tuning import tune as run

    with TuningDisplay() as display:
        result = run(recipe_path, overrides=overrides, store=store, device=device, resume=resume, progress=display)
    print_result(result, store)

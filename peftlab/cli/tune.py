"""`peftlab tune`."""

from typing import Any

import click

from peftlab.cli.launcher import Launched, launch, launched_alone, launcher_words
from peftlab.cli.options import device_option, override_option, store_option
from peftlab.recipe import read_recipe


@click.command(cls=Launched)
@click.argument("recipe_path", metavar="RECIPE")
@override_option
@store_option
@device_option
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of an interrupted run.")
@click.option(
    "--launch",
    "launcher",
    metavar="COMMAND",
    callback=launcher_words,
    help='Share the run among several processes, as in --launch "torchrun --nproc-per-node 2".',
)
@click.pass_context
def tune(
    ctx: click.Context,
    recipe_path: str,
    overrides: dict[str, Any],
    store: str,
    device: str,
    resume: bool,
    launcher: list[str] | None,
) -> None:
    """Train the adapter that RECIPE asks for, and publish it to the store.

    Only small adapter weights and the head are trained; the base stays as it is. Ctrl-C stops after a checkpoint.
    """
    if launcher:
        name = read_recipe(recipe_path, overrides).name  # what is wrong with it is told before anything is launched
        launch(launcher, "tune", ctx.meta["typed"], store, name)
        return

    from peftlab.cli.progress import TuningDisplay, print_result
    from peftlab.tuning import ProcessGroup
    from peftlab.tuning import tune as run

    with TuningDisplay() as display:
        if launched_alone():
            display.warn(
                "the launcher started one process, so nothing is shared. On CPU take torchrun, not accelerate."
            )
        result = run(recipe_path, overrides=overrides, store=store, device=device, resume=resume, progress=display)
    if ProcessGroup.from_environment().is_main:
        print_result(result, store)

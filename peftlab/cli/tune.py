"""`peftlab tune`."""

from typing import Any

import click

from peftlab.cli.help_layout import argument, option
from peftlab.cli.launcher import LaunchableCommand, is_single_launched_process, launch_processes, parse_launcher
from peftlab.cli.options import device_option, override_option, store_option
from peftlab.cli.progress import TuningDisplay, print_result
from peftlab.recipe import read_recipe
from peftlab.tuning import ProcessGroup
from peftlab.tuning import tune as run_tuning


@click.command(cls=LaunchableCommand, example="peftlab tune recipes/ner-lora.yaml -o training.num_train_epochs=5")
@argument("recipe_path", metavar="RECIPE", description="Recipe, a YAML file.")
@override_option
@store_option
@device_option
@option("--resume", is_flag=True, help="Continue an interrupted run from its last checkpoint.")
@option(
    "--publish-anyway",
    is_flag=True,
    help="Publish the adapter even if it is no better than the most frequent answer. With --resume it is not trained "
    "again.",
)
@option(
    "--launch",
    "launcher",
    metavar="COMMAND",
    callback=parse_launcher,
    help='Run in several processes, as in --launch "torchrun --nproc-per-node 2".',
)
@click.pass_context
def tune(
    ctx: click.Context,
    recipe_path: str,
    overrides: dict[str, Any],
    store: str,
    device: str,
    resume: bool,
    publish_anyway: bool,
    launcher: list[str] | None,
) -> None:
    """Train the adapter of a recipe and publish it.

    Only the adapter and the head are trained; the base model stays frozen.
    An adapter that scores no better than the most frequent answer is kept, but not published.
    Ctrl-C saves a checkpoint and stops; the same command with --resume continues.
    """
    if launcher:
        name = read_recipe(recipe_path, overrides).name  # report recipe errors before any process is launched
        launch_processes(launcher, "tune", ctx.meta["typed_arguments"], store, name)
        return
    with TuningDisplay() as display:
        if is_single_launched_process():
            display.warn(
                "the launcher started only one process, so the work is not shared. On CPU use torchrun, not accelerate."
            )
        result = run_tuning(
            recipe_path,
            overrides=overrides,
            store=store,
            device=device,
            resume=resume,
            publish_anyway=publish_anyway,
            progress=display,
        )
    if ProcessGroup.from_environment().is_main:
        print_result(result, store)

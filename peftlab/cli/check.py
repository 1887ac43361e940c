"""`peftlab check`."""

from itertools import islice
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from peftlab.cli.console import out
from peftlab.cli.help_layout import Command, argument, option
from peftlab.cli.options import device_option, override_option, store_option
from peftlab.cli.progress import TuningDisplay, ledger_table
from peftlab.tuning import check as check_recipe

if TYPE_CHECKING:
    from peftlab.tasks.inputs.inputs import LossSegment
    from peftlab.tuning.run import Run


@click.command(cls=Command, example="peftlab check recipes/chat-lora.yaml --show-mask")
@argument("recipe_path", metavar="RECIPE", description="Recipe, a YAML file.")
@override_option
@store_option
@device_option
@option(
    "--show-mask",
    "num_shown",
    metavar="ROWS",
    type=click.IntRange(min=1),
    is_flag=False,
    flag_value=3,
    help="Print the tokens of the first training rows (3 rows if no number is given), with the tokens in the loss "
    "highlighted.",
)
def check(recipe_path: str, overrides: dict[str, Any], store: str, device: str, num_shown: int | None) -> None:
    """Check a recipe, its data and its base model.

    This does everything that `peftlab tune` does before training, and lists all errors. It writes nothing.
    If the base model is not on this machine, the recipe and the rows are checked without it.
    """
    with TuningDisplay() as display:
        checked = check_recipe(recipe_path, overrides=overrides, store=store, device=device, progress=display)
    if checked.run is None:
        out.print(ledger_table(checked.task.targets.noun, checked.ledgers))
        display.warn(f"the recipe and the rows are valid, but the base model was not checked: {checked.missing}")
        if num_shown:
            display.warn("--show-mask needs the tokenizer of the base model, so no tokens are shown.")
        return
    if num_shown:
        print_masks(checked.run, num_shown)
    out.print(f"[bold green]{checked.recipe.name}[/] can be tuned.")


def print_masks(run: "Run", num_rows: int) -> None:
    """Print the tokens of the first training rows; those in the loss are green, or between « and » without colors.

    Raises:
        click.UsageError: the loss of the task is not computed token by token.
    """
    if run.task.head.token_labels(run.train_features[0]) is None:
        raise click.UsageError(f"{run.task.type} has no loss per token, so there is no mask to show.")
    dataset = run.dataset
    rows = zip(dataset.examples["train"], dataset.features["train"], strict=True)
    for example, features in islice(rows, num_rows):
        for feature in features:
            segments = list(run.base.inputs.loss_segments(feature))
            in_loss = sum(segment.length for segment in segments if segment.in_loss)
            part = f" ({part})" if (part := getattr(feature, "part", "")) else ""
            out.print(Text(f"{example.where}{part}  {len(feature)} tokens, {in_loss} in the loss", "dim"))
            out.print(_highlight_mask(segments, with_color=bool(out.color_system)))
            out.print()


def _highlight_mask(segments: "list[LossSegment]", *, with_color: bool) -> Text:
    rendered = Text()
    for segment in segments:
        text = segment.text.replace("\n", "↵\n")
        if segment.in_loss:
            rendered.append(text if with_color else f"«{text}»", style="black on green")
        else:
            rendered.append(text, style="dim")
    return rendered

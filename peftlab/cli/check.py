"""`peftlab check`."""

from itertools import groupby
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from peftlab.cli.options import device_option, override_option, store_option

if TYPE_CHECKING:
    from peftlab.tasks import Feature
    from peftlab.tuning.run import Run


@click.command()
@click.argument("recipe_path", metavar="RECIPE")
@override_option
@store_option
@device_option
@click.option(
    "--show-mask",
    "shown",
    metavar="ROWS",
    type=click.IntRange(min=1),
    is_flag=False,
    flag_value=3,
    help="Print the tokens of the first training rows (3 without a number), and which of them are learnt.",
)
def check(recipe_path: str, overrides: dict[str, Any], store: str, device: str, shown: int | None) -> None:
    """Do all that `tune` does before it trains: whatever is wrong with RECIPE, its data or its base is told.

    Nothing is written. Where the base is not on this machine, recipe and rows are checked as far as they can be.
    """
    from peftlab.cli.console import out
    from peftlab.cli.progress import TuningDisplay, ledger_table
    from peftlab.tuning import check as run

    with TuningDisplay() as display:
        checked = run(recipe_path, overrides=overrides, store=store, device=device, progress=display)
    if checked.run is None:
        out.print(ledger_table(checked.task.targets, checked.ledgers))
        display.warn(f"recipe and rows are right, but the base could not be looked at: {checked.missing}")
        return
    if shown:
        print_masks(checked.run, shown)
    out.print(f"[bold green]{checked.recipe.name}[/] can be tuned.")


def print_masks(run: "Run", rows: int) -> None:
    """The first training rows as the model sees them, learnt tokens on green; in « and » where there is no colour."""
    from peftlab.cli.console import out

    if not ((run.task.per_token or run.task.writes) and isinstance(run.train_features[0].labels, list)):
        raise click.UsageError(f"{run.task.type} does not learn token by token, so there is no mask to show.")
    for example, features in list(zip(run.dataset.examples["train"], run.dataset.features["train"], strict=True))[
        :rows
    ]:
        for feature in features:
            learnt = sum(chosen for _, chosen in feature.learnt())
            which = f" ({part})" if (part := getattr(feature, "part", "")) else ""
            out.print(Text(f"{example.where}{which}  {len(feature)} tokens, {learnt} of them learnt", "dim"))
            out.print(_masked(feature, run.base.tokenizer, coloured=bool(out.color_system)))
            out.print()


def _masked(feature: "Feature", tokenizer: Any, *, coloured: bool) -> Text:
    shown = Text()
    for learnt, group in groupby(feature.learnt(), lambda token: token[1]):
        text = tokenizer.decode([token for token, _ in group]).replace("\n", "↵\n")
        if learnt:
            shown.append(text if coloured else f"«{text}»", style="black on green")
        else:
            shown.append(text, style="dim")
    return shown

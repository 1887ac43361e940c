"""`peftlab adapters import`."""

import json
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from peftlab.cli.console import megabytes, out, print_notes
from peftlab.cli.heavy import interop
from peftlab.cli.help_layout import Command, argument, option
from peftlab.cli.options import BASE_MODEL, device_option, json_option, parse_names, store_option
from peftlab.store import Store
from peftlab.tasks import TASKS

if TYPE_CHECKING:
    from peftlab.interop import Imported

ADAPTER, TASK = "Adapter", "Task"
EXAMPLE = "peftlab adapters import ./my-lora --name mine --task text-classification"


@click.command("import", cls=Command, example=EXAMPLE)
@argument("source", description="Folder of the adapter, or its id on the Hub.")
@option("--name", required=True, metavar="NAME", section=ADAPTER, help="Name of the adapter in the store.")
@option("--revision", metavar="REV", section=ADAPTER, help="Branch, tag or commit of SOURCE on the Hub.")
@option(
    "--task",
    required=True,
    metavar="TYPE",
    section=TASK,
    help="Task of the adapter, such as token-classification; see `task.type` in a recipe.",
)
@option(
    "--labels",
    metavar="A,B,C",
    callback=parse_names,
    section=TASK,
    help="Label of each output of the head, in order; for token-classification tags, such as O,B-PER,I-PER.",
)
@option("--multi-label", is_flag=True, section=TASK, help="A text can have any number of labels.")
@option(
    "--threshold",
    type=float,
    metavar="P",
    section=TASK,
    help="With --multi-label: probability from which a label is predicted.",
)
@option(
    "--max-length",
    type=int,
    metavar="TOKENS",
    section=TASK,
    help="Maximum length of an input. Default: the maximum of the base model.",
)
@option(
    "--base",
    metavar="MODEL",
    section=BASE_MODEL,
    help="Base model of the adapter. Default: the one that the adapter's files name.",
)
@option("--trust-remote-code", is_flag=True, section=BASE_MODEL, help="Run Python code that comes with the base model.")
@json_option
@store_option
@device_option
def import_adapter(source: str, as_json: bool, store: str, **settings: Any) -> None:
    """Publish an adapter that plain PEFT saved.

    Before the adapter is published, it is loaded with its base model, and its outputs are compared with those of PEFT.
    """
    Store(store).versions(settings["name"])  # refuse an invalid name before the heavy imports
    imported = interop.import_adapter(source, store=store, **settings)
    if as_json:
        adapter = imported.adapter
        fields = {"adapter": str(adapter), "folder": str(adapter.folder), "base": imported.base.model}
        click.echo(json.dumps({**fields, **imported.origin.to_dict()}, ensure_ascii=False))
    else:
        print_imported(imported, store)


def print_imported(imported: "Imported", store: str) -> None:
    """Print the published adapter, its task and base model, and the command that uses it."""
    adapter, task = imported.adapter, imported.adapter.task
    labels = f": {escape(', '.join(task.labels))}" if task.labels else ""
    out.print(f"[bold green]Published[/] {adapter}, {megabytes(adapter.size)}, in {escape(str(adapter.folder))}")
    out.print(f"Task      {task.type}{labels}, by {adapter.manifest.method}, not scored")
    out.print(f"Base      {escape(imported.base.model)}, from {escape(imported.base.source)}")
    out.print(
        f"Compared  its logits (up to {imported.largest_logit:.3g}) differ from plain PEFT's by "
        f"{imported.difference:.1g}",
        style="dim",
    )
    print_notes(imported.warnings)
    option_text = "" if store == "adapters" else f" --store {escape(store)}"
    out.print(f"Use it    peftlab predict {adapter.name}{option_text} {escape(TASKS[task.type].example(task))}")

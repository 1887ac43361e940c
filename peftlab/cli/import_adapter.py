"""`peftlab adapters import`."""

import json
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from peftlab.cli.options import device_option, json_option, store_option

if TYPE_CHECKING:
    from peftlab.interop import Imported


def _named(_: click.Context, __: click.Parameter, text: str | None) -> list[str] | None:
    return [name.strip() for name in text.split(",")] if text is not None else None


@click.command("import")
@click.argument("source")
@click.option("--name", required=True, help="What the adapter is to be called in the store.")
@click.option("--task", required=True, metavar="TYPE", help="token-classification, text-classification, …")
@click.option(
    "--labels",
    metavar="A,B,C",
    callback=_named,
    help="What each output of its head means, in their order; for token-classification tags, such as O,B-PER,I-PER.",
)
@click.option("--multi-label", is_flag=True, help="Any number of labels for a text.")
@click.option("--threshold", type=float, metavar="SHARE", help="With --multi-label: the probability that gives one.")
@click.option("--base", metavar="MODEL", help="The base it was trained on, if it names none or another place.")
@click.option("--max-length", type=int, metavar="TOKENS", help="Longest input; what the base takes, if not given.")
@click.option("--revision", metavar="REV", help="Hub branch, tag or commit of SOURCE.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the base.")
@json_option
@store_option
@device_option
def import_adapter(source: str, as_json: bool, store: str, **settings: Any) -> None:
    """Publish an adapter that plain PEFT saved: SOURCE is its folder, or its Hub id.

    It is attached to its base and compared with what plain PEFT answers before it counts as published.
    """
    from peftlab.store import Store

    Store(store).versions(settings["name"])  # what cannot be a name is told at once

    from peftlab.interop import import_adapter as run

    imported = run(source, store=store, **settings)
    if as_json:
        adapter = imported.adapter
        described = {"adapter": str(adapter), "folder": str(adapter.folder), "base": imported.base.model}
        click.echo(json.dumps({**described, **imported.origin.to_dict()}, ensure_ascii=False))
        return
    _print_imported(imported, store)


def _print_imported(imported: "Imported", store: str) -> None:
    from peftlab.cli.console import megabytes, out, print_notes

    adapter, task = imported.adapter, imported.adapter.task
    labels = f": {escape(', '.join(task.labels))}" if task.labels else ""
    out.print(f"[bold green]Published[/] {adapter}, {megabytes(adapter.size)}, in {escape(str(adapter.folder))}")
    out.print(f"Task      {task.type}{labels}, by {adapter.manifest.method}, not scored")
    out.print(f"Base      {escape(imported.base.model)}, from {escape(imported.base.source)}")
    out.print(
        f"Compared  its logits (up to {imported.largest:.3g}) differ by {imported.difference:.1g} from plain PEFT's",
        style="dim",
    )
    print_notes(imported.notes)
    option = "" if store == "adapters" else f" --store {escape(store)}"
    out.print(f"Use it    peftlab predict {adapter.name}{option} {escape(task.example_arguments)}")

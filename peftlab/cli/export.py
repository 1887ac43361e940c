"""`peftlab export`."""

import json
from typing import TYPE_CHECKING, Any, cast

import click

from peftlab.cli.adapter_names import resolve_tasks
from peftlab.cli.console import megabytes, out
from peftlab.cli.heavy import interop
from peftlab.cli.help_layout import Command, argument, option
from peftlab.cli.options import OUTPUT, device_option, json_option, refuse_options, store_option, trust_option

if TYPE_CHECKING:
    from peftlab.interop import ExportedAdapter, ExportFormat, Merged

FORMATS = ("merged", "peft", "vllm", "gguf-lora", "ollama")


@click.command(cls=Command, example="peftlab export sentiment-stays --to merged --output model")
@argument("adapter", description="Adapter, as name or name@version.")
@option(
    "--to",
    "target",
    default="merged",
    show_default=True,
    type=click.Choice(FORMATS),
    metavar="FORMAT",
    section=OUTPUT,
    help="Format to write, one of those above.",
)
@option("--output", required=True, metavar="DIR", section=OUTPUT, help="Folder to write; it must be new or empty.")
@option(
    "--from",
    "base_name",
    metavar="NAME",
    section=OUTPUT,
    help="With --to ollama: the base model in Ollama, as a name such as qwen3:0.6b or a GGUF file.",
)
@json_option
@store_option
@device_option
@trust_option
@click.pass_context
def export(
    ctx: click.Context,
    adapter: str,
    target: str,
    output: str,
    base_name: str | None,
    as_json: bool,
    store: str,
    device: str,
    trust_remote_code: bool,
) -> None:
    """Write an adapter for use without peftlab.

    \b
    merged     one plain Transformers model with the adapter merged in
    peft       the adapter alone, as PEFT loads it
    vllm       the same for vLLM's --lora-modules, after checking vLLM's rules
    gguf-lora  one file for llama.cpp's --lora
    ollama     the same file, and a Modelfile
    """
    if target != "ollama":
        refuse_options(ctx, ("base_name",), f"is for --to ollama, not for --to {target}.")
    if target != "merged":
        refuse_options(ctx, ("device", "trust_remote_code"), f"is for --to merged, not for --to {target}.")
    resolve_tasks([adapter], store)
    if target == "merged":
        merged = interop.merge(adapter, output, store=store, device=device, trust_remote_code=trust_remote_code)
        print_merged(merged, as_json=as_json)
    else:
        exported = interop.export_adapter(
            adapter, output, cast("ExportFormat", target), store=store, base_name=base_name
        )
        print_exported(exported, target, as_json=as_json)


def print_merged(merged: "Merged", *, as_json: bool) -> None:
    """Print the folder of a merged model, and how much its logits differ from those of the adapter."""
    size = sum(file.stat().st_size for file in merged.folder.iterdir())
    if as_json:
        numbers = {"difference": merged.difference, "largest_logit": merged.largest_logit, "bytes": size}
        _print_json({"adapter": str(merged.adapter), "to": "merged", "folder": str(merged.folder), **numbers})
        return
    out.print(
        f"[bold]{merged.adapter}[/] merged into its base model: {merged.folder}, {megabytes(size)}", highlight=False
    )
    out.print(
        f"Reloaded, its logits (up to {merged.largest_logit:.3g}) differ from the adapter's by "
        f"{merged.difference:.1g}.",
        style="dim",
    )
    out.print(f'Use it: transformers.pipeline(model="{merged.folder}")', highlight=False)


def print_exported(exported: "ExportedAdapter", target: str, *, as_json: bool) -> None:
    """Print the folder of an exported adapter, and the command that uses it."""
    if as_json:
        _print_json(
            {
                "adapter": str(exported.adapter),
                "to": target,
                "folder": str(exported.folder),
                "command": exported.command,
                "notes": exported.warnings,
            }
        )
        return
    out.print(f"[bold]{exported.adapter}[/] for {target}: {exported.folder}", highlight=False)
    for note in exported.warnings:
        out.print(note, style="dim", highlight=False, markup=False, soft_wrap=True)
    out.print(f"Use it: {exported.command}", highlight=False, markup=False, soft_wrap=True)


def _print_json(fields: dict[str, Any]) -> None:
    click.echo(json.dumps(fields))

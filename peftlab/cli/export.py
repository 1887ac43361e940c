"""`peftlab export`."""

import json
from typing import TYPE_CHECKING, Any, cast

import click

from peftlab.cli.options import device_option, json_option, store_option, trust_option

if TYPE_CHECKING:
    from peftlab.interop.export import ExportedAdapter, ExportFormat
    from peftlab.interop.merge import Merged

FORMS = ("merged", "peft", "vllm", "gguf-lora", "ollama")


@click.command()
@click.argument("adapter")
@click.option("--to", "form", default="merged", show_default=True, type=click.Choice(FORMS), help="What to make.")
@click.option("--output", required=True, metavar="DIR", help="A new folder.")
@click.option("--from", "base_name", metavar="NAME", help="ollama: what it has the base under, a name or a GGUF file.")
@json_option
@store_option
@device_option
@trust_option
def export(
    adapter: str,
    form: str,
    output: str,
    base_name: str | None,
    as_json: bool,
    store: str,
    device: str,
    trust_remote_code: bool,
) -> None:
    """Make of ADAPTER what works without peftlab.

    merged is one plain Transformers model, base and adapter in one; peft the adapter alone, as PEFT loads it; vllm the
    same for vLLM's --lora-modules, after its rules are checked; gguf-lora one file for llama.cpp's --lora; ollama the
    same file with a Modelfile.
    """
    from peftlab.cli.predict import resolve_first

    if base_name is not None and form != "ollama":
        raise click.UsageError(f"--from is for --to ollama, not for --to {form}.")
    resolve_first([adapter], store)
    if form == "merged":
        from peftlab.interop import merge

        merged = merge(adapter, output, store=store, device=device, trust_remote_code=trust_remote_code)
        tell_merged(merged, as_json=as_json)
    else:
        from peftlab.interop.export import export_adapter

        handed = export_adapter(adapter, output, cast("ExportFormat", form), store=store, base_name=base_name)
        tell_handed_over(handed, form, as_json=as_json)


def tell_merged(merged: "Merged", *, as_json: bool) -> None:
    """Where the model is, and how near it answers to the adapter."""
    from peftlab.cli.console import megabytes, out

    size = sum(file.stat().st_size for file in merged.folder.iterdir())
    if as_json:
        numbers = {"difference": merged.difference, "largest_logit": merged.largest, "bytes": size}
        _tell({"adapter": str(merged.adapter), "to": "merged", "folder": str(merged.folder), **numbers})
        return
    out.print(f"[bold]{merged.adapter}[/] merged into its base: {merged.folder}, {megabytes(size)}", highlight=False)
    out.print(
        f"Read back, its logits (up to {merged.largest:.3g}) differ by {merged.difference:.1g} from the adapter's.",
        style="dim",
    )
    out.print(f'Use it: transformers.pipeline(model="{merged.folder}")', highlight=False)


def tell_handed_over(handed: "ExportedAdapter", form: str, *, as_json: bool) -> None:
    """Where the adapter's copy is, and how it is used there."""
    from peftlab.cli.console import out

    if as_json:
        told = {"adapter": str(handed.adapter), "to": form, "folder": str(handed.folder), "command": handed.command}
        _tell({**told, "notes": handed.notes})
        return
    out.print(f"[bold]{handed.adapter}[/] for {form}: {handed.folder}", highlight=False)
    for note in handed.notes:
        out.print(note, style="dim", highlight=False, markup=False, soft_wrap=True)
    out.print(f"Use it: {handed.command}", highlight=False, markup=False, soft_wrap=True)


def _tell(fields: dict[str, Any]) -> None:
    click.echo(json.dumps(fields))

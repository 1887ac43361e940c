"""`peftlab export`."""

import json

import click

from peftlab.cli.options import device_option, json_option, store_option, trust_option


@click.command()
@click.argument("adapter")
@click.option("--to", "form", default="merged", show_default=True, type=click.Choice(["merged"]), help="What to make.")
@click.option("--output", required=True, metavar="DIR", help="A new folder.")
@json_option
@store_option
@device_option
@trust_option
def export(
    adapter: str, form: str, output: str, as_json: bool, store: str, device: str, trust_remote_code: bool
) -> None:
    """Make of ADAPTER what works without peftlab: merged is one plain Transformers model, base and adapter in one."""
    from peftlab.cli.predict import resolve_first

    resolve_first([adapter], store)

    from peftlab.cli.display import megabytes, out
    from peftlab.runtime import merge

    merged = merge(adapter, output, store=store, device=device, trust_remote_code=trust_remote_code)
    size = sum(file.stat().st_size for file in merged.folder.iterdir())
    if as_json:
        numbers = {"difference": merged.difference, "largest_logit": merged.largest, "bytes": size}
        click.echo(json.dumps({"adapter": str(merged.adapter), "to": form, "folder": str(merged.folder), **numbers}))
        return
    out.print(f"[bold]{merged.adapter}[/] merged into its base: {merged.folder}, {megabytes(size)}", highlight=False)
    out.print(
        f"Read back, its logits (up to {merged.largest:.3g}) differ by {merged.difference:.1g} from the adapter's.",
        style="dim",
    )
    out.print(f'Use it: transformers.pipeline(model="{merged.folder}")', highlight=False)

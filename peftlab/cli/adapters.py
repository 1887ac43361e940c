"""`peftlab adapters list | show | verify | rollback | remove`; `import` is in import_adapter.py."""

import json

import click
from rich.markup import escape
from rich.text import Text

from peftlab.cli.console import cell, megabytes, out, score_tables, table
from peftlab.cli.help_layout import Command, Group, argument, option
from peftlab.cli.import_adapter import import_adapter
from peftlab.cli.options import json_option, store_option
from peftlab.cli.progress import print_baselines
from peftlab.errors import PeftlabError
from peftlab.store import Adapter, Manifest, Store

SECTIONS = {"Look up": ["list", "show", "verify"], "Change": ["import", "rollback", "remove"]}


@click.group(cls=Group, sections=SECTIONS, example="peftlab adapters list")
def adapters() -> None:
    """List, check, import and remove adapters."""


adapters.add_command(import_adapter)


@adapters.command("list", cls=Command, example="peftlab adapters list --store adapters")
@json_option
@store_option
def list_adapters(as_json: bool, store: str) -> None:
    """List the adapters of the store.

    Each adapter is shown in its current version.
    """
    found, damaged = _resolve_all(Store(store))
    if as_json:
        for adapter in found:
            click.echo(json.dumps({**adapter.manifest.to_dict(), "folder": str(adapter.folder)}, ensure_ascii=False))
        for name, error in damaged.items():
            click.echo(json.dumps({"name": name, "error": str(error)}, ensure_ascii=False))
        return
    if not (found or damaged):
        out.print(f"No adapters in {escape(store)} yet. Make one: peftlab tune recipes/ner-lora.yaml")
        return
    rows = table(f"Adapters in {escape(store)}", "name", "version", "task", "score", "size", "created")
    for adapter in found:
        manifest = adapter.manifest
        rows.add_row(
            adapter.name,
            f"{adapter.version} of {len(Store(store).versions(adapter.name))}",
            manifest.task.type,
            _main_score(manifest),
            megabytes(adapter.size),
            manifest.created[:10],
        )
    out.print(rows)
    for name, error in damaged.items():
        out.print(Text(f"{name}: {error}", "red"))


@adapters.command(cls=Command, example="peftlab adapters show ner-clinic@1")
@argument("adapter", description="Adapter, as name or name@version.")
@json_option
@store_option
def show(adapter: str, as_json: bool, store: str) -> None:
    """Show the manifest of an adapter.

    The manifest holds the task, the base model, the method, the data and the scores.
    """
    found = Store(store).resolve(adapter)
    if as_json:
        click.echo(json.dumps({**found.manifest.to_dict(), "folder": str(found.folder)}, ensure_ascii=False, indent=2))
        return
    manifest = found.manifest
    out.print(f"[bold]{found}[/]  {escape(str(found.folder))}  {megabytes(found.size)}  {manifest.created}")
    labels = f": {escape(', '.join(manifest.task.labels))}" if manifest.task.labels else ""
    out.print(f"task    {manifest.task.type}{labels}")
    out.print(f"base    {escape(manifest.base.model)}  fingerprint {manifest.base.fingerprint[:12]}…")
    if (quantization := manifest.base.quantization) and (memory := manifest.base.memory):
        in_memory, fp32 = megabytes(memory.in_memory), megabytes(memory.fp32)
        out.print(f"        in {quantization}: {in_memory} of memory, in fp32 {fp32}")
    trained, base = manifest.parameters.trained, manifest.parameters.base
    out.print(f"method  {manifest.method}: {trained:,} parameters, {trained / base:.2%} of the base")
    if start := manifest.started_from:
        out.print(f"from    {start.adapter}, manifest {start.manifest_sha256[:12]}…")
    out.print(f"data    {_data_hash(manifest)}, inputs of up to {manifest.max_length} tokens")
    origin = "imported by" if manifest.imported else "made by"
    out.print(f"{origin} {', '.join(f'{name} {number}' for name, number in manifest.versions.items())}\n")
    _print_origin(manifest)
    for split, scores in manifest.scores.items():
        out.print(score_tables(f"{split.capitalize()} scores", scores))
        out.print()
    print_baselines(manifest)


@adapters.command(cls=Command, example="peftlab adapters verify")
@argument(
    "adapter_names", metavar="[ADAPTER]…", nargs=-1, description="Adapters, each as name or name@version; default: all."
)
@store_option
def verify(adapter_names: tuple[str, ...], store: str) -> None:
    """Check that no byte of an adapter has changed.

    Without arguments, all versions of all adapters are checked.
    """
    adapter_store = Store(store)
    all_versions = [f"{name}@{version}" for name in adapter_store.names() for version in adapter_store.versions(name)]
    errors: list[PeftlabError] = list(_resolve_all(adapter_store)[1].values()) if not adapter_names else []
    for name in adapter_names or all_versions:
        try:
            adapter = adapter_store.verify(name)
        except PeftlabError as error:
            errors.append(error)
        else:
            out.print(f"[green]ok[/]  {adapter}  {len(adapter.manifest.files) + 1} files, {megabytes(adapter.size)}")
    if errors:
        raise type(errors[0])("\n".join(dict.fromkeys(map(str, errors))))
    if not (adapter_names or all_versions):
        out.print(f"No adapters in {escape(store)} to verify.")


@adapters.command(cls=Command, example="peftlab adapters rollback ner-clinic@1")
@argument(
    "adapter", description="Version to make current, as name@version; a name means the version before the current one."
)
@store_option
def rollback(adapter: str, store: str) -> None:
    """Make an earlier version current."""
    found = Store(store).rollback(adapter)
    out.print(f"{found.name} now refers to {found}, {_main_score(found.manifest)}.")


@adapters.command(cls=Command, example="peftlab adapters remove ner-clinic@1")
@argument("adapter", description="Version to delete, as name@version; a name means all versions of the adapter.")
@option("--yes", is_flag=True, help="Remove without asking.")
@store_option
def remove(adapter: str, yes: bool, store: str) -> None:
    """Delete an adapter."""
    adapter_store = Store(store)
    versions = adapter_store.versions(adapter.partition("@")[0])
    target = adapter if "@" in adapter else f"{adapter} and its {len(versions)} version(s)"
    if versions and not yes:
        click.confirm(f"Delete {target} from {store}?", abort=True)
    removed = adapter_store.remove(adapter)
    name = adapter.partition("@")[0]
    out.print(f"Deleted {', '.join(f'{name}@{version}' for version in removed)}.")


def _resolve_all(adapter_store: Store) -> tuple[list[Adapter], dict[str, PeftlabError]]:
    """Return the current version of each adapter, and the error of each adapter that cannot be read, by name."""
    found, damaged = [], {}
    for name in adapter_store.names():
        try:
            found.append(adapter_store.resolve(name))
        except PeftlabError as error:
            damaged[name] = error
    return found, damaged


def _data_hash(manifest: Manifest) -> str:
    sha256 = manifest.data.sha256
    return f"sha256 {sha256[:12]}…" if sha256 else "not known"


def _print_origin(manifest: Manifest) -> None:
    """Print where an imported adapter comes from, and the notes of its import."""
    if imported := manifest.imported:
        version = f", saved by PEFT {imported.peft_version}" if imported.peft_version else ""
        out.print(f"Imported from {escape(imported.source)}{escape(version)}; not scored: peftlab evaluate does it.")
        for note in imported.notes:
            out.print(f"  {note}", style="dim", markup=False)


def _main_score(manifest: Manifest) -> str:
    """Return the main score on the test split, or else on the validation split, as text."""
    if not manifest.scores:
        return "imported, not scored" if manifest.imported else "not scored"
    split, main = str(manifest.main_split), manifest.main_score
    return f"{split} {main} {cell(manifest.scores[split].values[main])}"

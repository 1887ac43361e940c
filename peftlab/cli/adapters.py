"""`peftlab adapters list | show | verify | rollback | remove`; `import` is in importing.py."""

import json

import click
from rich.markup import escape
from rich.text import Text

from peftlab.cli.console import cell, megabytes, out, score_tables, table
from peftlab.cli.options import json_option, store_option
from peftlab.errors import PeftlabError
from peftlab.store import Adapter, Manifest, Store


@click.group()
def adapters() -> None:
    """Look after published adapters."""


@adapters.command("list")
@json_option
@store_option
def list_adapters(as_json: bool, store: str) -> None:
    """All adapters of the store, each in its current version."""
    found, damaged = _resolved(Store(store))
    if as_json:
        for adapter in found:
            click.echo(json.dumps({**adapter.manifest.to_dict(), "folder": str(adapter.folder)}, ensure_ascii=False))
        for name, error in damaged.items():
            click.echo(json.dumps({"name": name, "error": str(error)}, ensure_ascii=False))
        return
    if not (found or damaged):
        out.print(f"No adapters in {escape(store)} yet. Make one: peftlab tune recipes/ner-lora.yaml")
        return
    made = table(f"Adapters in {escape(store)}", "name", "version", "task", "score", "size", "created")
    for adapter in found:
        manifest = adapter.manifest
        made.add_row(
            adapter.name,
            f"{adapter.version} of {len(Store(store).versions(adapter.name))}",
            manifest.task.type,
            _headline(manifest),
            megabytes(adapter.size),
            manifest.created[:10],
        )
    out.print(made)
    for name, error in damaged.items():
        out.print(Text(f"{name}: {error}", "red"))


@adapters.command()
@click.argument("adapter")
@json_option
@store_option
def show(adapter: str, as_json: bool, store: str) -> None:
    """What the manifest of ADAPTER says: scores, data, base, versions."""
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
    out.print(f"data    {_data(manifest)}, inputs of up to {manifest.max_length} tokens")
    made = "imported by" if manifest.imported else "made by"
    out.print(f"{made} {', '.join(f'{name} {number}' for name, number in manifest.versions.items())}\n")
    _print_origin(manifest)
    for split, scores in manifest.scores.items():
        out.print(score_tables(f"{split.capitalize()} scores", scores))
        out.print()


@adapters.command()
@click.argument("adapter_names", metavar="[ADAPTER]…", nargs=-1)
@store_option
def verify(adapter_names: tuple[str, ...], store: str) -> None:
    """Compare every byte with what was published; without names, for every version of every adapter."""
    shelf = Store(store)
    every = [f"{name}@{version}" for name in shelf.names() for version in shelf.versions(name)]
    faults: list[PeftlabError] = list(_resolved(shelf)[1].values()) if not adapter_names else []
    for name in adapter_names or every:
        try:
            adapter = shelf.verify(name)
        except PeftlabError as error:
            faults.append(error)
        else:
            out.print(f"[green]ok[/]  {adapter}  {len(adapter.manifest.files) + 1} files, {megabytes(adapter.size)}")
    if faults:
        raise type(faults[0])("\n".join(dict.fromkeys(map(str, faults))))
    if not (adapter_names or every):
        out.print(f"No adapters in {escape(store)} to verify.")


@adapters.command()
@click.argument("adapter")
@store_option
def rollback(adapter: str, store: str) -> None:
    """Let a name mean its version before the current one, or the one given as name@version."""
    found = Store(store).rollback(adapter)
    out.print(f"{found.name} now means {found}, {_headline(found.manifest)}.")


@adapters.command()
@click.argument("adapter")
@click.option("--yes", is_flag=True, help="Do not ask.")
@store_option
def remove(adapter: str, yes: bool, store: str) -> None:
    """Delete one version (name@version) or an adapter with all its versions (name)."""
    shelf = Store(store)
    versions = shelf.versions(adapter.partition("@")[0])
    what = adapter if "@" in adapter else f"{adapter} and its {len(versions)} version(s)"
    if versions and not yes:
        click.confirm(f"Delete {what} from {store}?", abort=True)
    removed = shelf.remove(adapter)
    name = adapter.partition("@")[0]
    out.print(f"Deleted {', '.join(f'{name}@{version}' for version in removed)}.")


def _resolved(shelf: Store) -> tuple[list[Adapter], dict[str, PeftlabError]]:
    """The current version of each adapter, and why where there is none to be had."""
    found, damaged = [], {}
    for name in shelf.names():
        try:
            found.append(shelf.resolve(name))
        except PeftlabError as error:
            damaged[name] = error
    return found, damaged


def _data(manifest: Manifest) -> str:
    sha256 = manifest.data.sha256
    return f"sha256 {sha256[:12]}…" if sha256 else "not known"


def _print_origin(manifest: Manifest) -> None:
    """Where an imported adapter comes from, and what to know of it."""
    if imported := manifest.imported:
        version = f", saved by PEFT {imported.peft_version}" if imported.peft_version else ""
        out.print(f"Imported from {escape(imported.source)}{escape(version)}; not scored: peftlab evaluate does it.")
        for note in imported.notes:
            out.print(f"  {note}", style="dim", markup=False)


def _headline(manifest: Manifest) -> str:
    """The main score on the last split there is."""
    if not manifest.scores:
        return "imported, not scored" if manifest.imported else "not scored"
    split = "test" if "test" in manifest.scores else "validation"
    main = manifest.main_score
    return f"{split} {main} {cell(manifest.scores[split].values[main])}"

"""Names of adapters on the command line."""

import click

from peftlab.store import STACK_SEPARATOR, Store
from peftlab.tasks import Task


def split_adapter_names(names: str | None) -> list[str]:
    """Split `A,B,A` into the different names, in order."""
    return list(dict.fromkeys(name.strip() for name in (names or "").split(",") if name.strip()))


def resolve_tasks(names: list[str], store: str) -> dict[str, Task]:
    """Find the adapters before the heavy imports → their tasks by name; a stack `lower+top` has the task of its top.

    Raises:
        AdapterNotFoundError: there is no adapter of that name.
        IntegrityError: the manifest of an adapter is damaged.
    """
    return {name: [Store(store).resolve(part).task for part in name.split(STACK_SEPARATOR)][-1] for name in names}


def check_adapter_source(by: str | None, *names: str | None) -> None:
    """Check that adapters are named either in arguments or in the column of --by.

    Raises:
        click.UsageError: both are given, or neither.
    """
    arguments = [name for name in names if name]
    if by and arguments:
        raise click.UsageError(
            f"--by reads the adapter of each row from the column '{by}'; omit '{arguments[0]}', or omit --by."
        )
    if not (by or arguments):
        raise click.UsageError("name an ADAPTER, or give --by COLUMN, the column that names the adapter of each row.")

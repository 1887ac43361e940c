"""Warm start: a run that starts from the weights of a published adapter on the same base (`method.start_from`)."""

from dataclasses import dataclass
from pathlib import Path

from peftlab.errors import AdapterNotFoundError, ErrorCollector, IntegrityError
from peftlab.recipe import Recipe
from peftlab.store import Adapter, StartInfo, Store

RECIPE_KEY = "method.start_from"


@dataclass(frozen=True)
class WarmStart:
    """The weights that a run started from.

    Attributes:
        adapter: Where they come from.
        num_tensors: Number of delta tensors that were loaded.
        has_head: Whether the head was loaded too.
        no_head_reason: Why the head was not loaded.
        newly_initialized: Modules that only the run's model has; their delta is initialized as without a warm start.
        skipped: Modules that only the adapter's model has; their delta is not used.
    """

    adapter: Adapter
    num_tensors: int
    has_head: bool
    no_head_reason: str
    newly_initialized: list[str]
    skipped: list[str]

    def __str__(self) -> str:
        task = self.adapter.manifest.task.type
        head = "and its head" if self.has_head else f"and not its head: {self.no_head_reason}"
        text = f"Starts from {self.adapter} ({task}): {self.num_tensors} tensors, {head}."
        if self.newly_initialized:
            text += f" Newly initialized: {', '.join(self.newly_initialized)}, which its model does not have."
        if self.skipped:
            text += f" Skipped: {', '.join(self.skipped)}, which this model does not have."
        return text

    def info(self) -> StartInfo:
        """The part of the manifest about the warm start."""
        return StartInfo(
            adapter=str(self.adapter),
            manifest_sha256=self.adapter.manifest.manifest_sha256,
            num_tensors=self.num_tensors,
            with_head=self.has_head,
            newly_initialized=tuple(self.newly_initialized),
            skipped=tuple(self.skipped),
        )


def find_start_adapter(recipe: Recipe, default_store: Store, errors: ErrorCollector) -> Adapter | None:
    """The verified adapter of `method.start_from`; one that is missing, damaged or of another method is an error."""
    reference = recipe.method.start_from
    if reference is None:
        return None
    path = Path(reference)
    store, name = (Store(path.parent), path.name) if "/" in reference else (default_store, reference)
    try:
        adapter = store.verify(name)
    except (AdapterNotFoundError, IntegrityError) as error:
        errors.add(str(error), key=RECIPE_KEY)
        return None
    if (method := adapter.manifest.method) != recipe.method.type:
        message = f"{adapter} is of method {method}, and this recipe's is {recipe.method.type}."
        errors.add(message, key=RECIPE_KEY, hint="Use its method, or another adapter.")
    return adapter

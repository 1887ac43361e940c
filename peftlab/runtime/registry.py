"""Map the names of a bank's adapters to their current versions."""

import threading
from collections.abc import Collection, Sequence

from peftlab.errors import AdapterNotFoundError, suggest
from peftlab.runtime.adapter_cache import AdapterCache, AdapterKey
from peftlab.runtime.composition import CompositeVersion, Composition
from peftlab.store import AdapterVersion, Store


class AdapterRegistry:
    """Maps names to versions, and follows the store's pointers; safe for threads.

    Args:
        store: Where the versions are published.

    Attributes:
        cache: Where the versions are loaded; set before the first adapter is added.
        warnings: See `Bank.warnings`.
        lock: Acquired while names change.
    """

    cache: AdapterCache

    def __init__(self, store: Store) -> None:
        self._store = store
        self._versions: dict[str, AdapterVersion] = {}
        self._compositions: dict[str, Composition] = {}
        self._rejected: set[AdapterVersion] = set()
        self.warnings: list[str] = []
        self._warned: set[str] = set()
        self.lock = threading.RLock()

    @property
    def names(self) -> list[str]:
        """Names of adapters, then of compositions, in the order in which they were added."""
        return [*self._versions, *self._compositions]

    def for_rows(self, num_rows: int, adapters: str | Sequence[str] | None) -> list[str]:
        """One name for each row, from one name, a list of names, or None for the only adapter.

        Raises:
            AdapterNotFoundError: `adapters` is None, but there are several adapters.
            ValueError: there are not as many names as rows.
        """
        if adapters is None:
            if len(self._versions) != 1:
                raise AdapterNotFoundError(f"name the adapter for each text: {', '.join(self.names)}.")
            adapters = next(iter(self._versions))
        names = [adapters] * num_rows if isinstance(adapters, str) else list(adapters)
        if len(names) != num_rows:
            raise ValueError(f"{num_rows} texts need {num_rows} adapter names, not {len(names)}")
        return names

    def set_version(self, name: str, version: AdapterVersion) -> None:
        """Load a version and map `name` to it; if loading fails, the name keeps its previous version."""
        warning = self.cache.load(version)
        previous = self._versions.get(name)
        self._versions[name] = version
        if previous:
            self.cache.release(previous)
        if warning:
            self.warnings.append(warning)

    def warn_once(self, name: str, warning: str) -> None:
        """Add a warning about the rows of an adapter, the first one only."""
        if name not in self._warned:
            self._warned.add(name)
            self.warnings.append(warning)

    def set_composition(self, name: str, composition: Composition) -> None:
        """Map `name` to a composition of adapters that were added."""
        self._compositions[name] = composition

    def check_names(self, names: Collection[str]) -> None:
        """Raise AdapterNotFoundError unless all of `names` are adapters that were added, not compositions."""
        for name in names:
            self._check_name(name, self._versions)

    def remove(self, name: str) -> None:
        """Remove a name.

        Raises:
            AdapterNotFoundError: it was not added.
            ValueError: it is part of a composition.
        """
        self._check_name(name, self.names)
        if user := next((user for user, made in self._compositions.items() if name in made.names), None):
            raise ValueError(f"'{name}' is part of '{user}'; remove that first")
        if name in self._compositions:
            del self._compositions[name]
        else:
            self.cache.release(self._versions.pop(name))

    def resolve(self, name: str) -> AdapterKey:
        """The current version or composition of a name.

        Raises:
            AdapterNotFoundError: the name was not added, or its adapter is no longer in the store.
        """
        self._check_name(name, self.names)
        if composition := self._compositions.get(name):
            return self.resolve_composition(composition)
        return self._current_version(name)

    def resolve_composition(self, composition: Composition) -> CompositeVersion:
        """A composition of the current versions of its names."""
        versions = tuple(map(self._current_version, composition.names))
        return CompositeVersion(composition.mode, versions, composition.weights)

    def _current_version(self, name: str) -> AdapterVersion:
        """The store's current version, or the previous one if the current one cannot be served."""
        version = self._store.resolve_version(name)
        if version == self._versions.get(name):
            return version
        with self.lock:
            self._check_name(name, self._versions)
            if version != self._versions[name] and version not in self._rejected:
                self._follow(name, version)
            return self._versions[name]

    def _follow(self, name: str, version: AdapterVersion) -> None:
        """Map a name to the store's new current version; if that cannot be served, add a warning and reject it."""
        try:
            self.set_version(name, version)
        except AdapterNotFoundError:  # it was removed again
            pass
        except Exception as error:  # any error: requests continue with the previous version
            self._rejected.add(version)
            self.warnings.append(
                f"{name} still refers to {self._versions[name]}, because {version} cannot be served: {error}"
            )

    def _check_name(self, name: str, known: Collection[str]) -> None:
        if name not in known:
            raise AdapterNotFoundError(f"'{name}' was not loaded. {suggest(name, known, what='Loaded')}")

"""Where adapters are: ready to answer (slots), as verified tensors (host memory), or in the store (disk).

Whatever is asked for moves up. What was used longest ago moves down: out of the slots when there are more than `slots`,
out of host memory when tensors take more than `memory` bytes. On a CPU the first two hold the same tensors. What a
request holds stays until it lets go. A load that fails leaves everything as it was.
"""

import threading
from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from peftlab.errors import AdapterNotFoundError, IntegrityError, MemoryBudgetError, PeftlabError
from peftlab.runtime.adapter_files import AdapterFiles, read_files
from peftlab.runtime.adapter_template import AdapterTemplate, LoadedAdapter, extract_adapter
from peftlab.runtime.composition import CompositeVersion, composed, parts_of
from peftlab.runtime.loaded_base import LoadedBase
from peftlab.runtime.lru_cache import LRUCache
from peftlab.store import AdapterVersion, Store

Key = AdapterVersion | CompositeVersion


class AdapterCache:
    """Adapters of one store for one base. Every method may be called from any thread."""

    def __init__(self, store: Store, base: LoadedBase, *, memory: int | None, slots: int | None) -> None:
        self._store = store
        self._base = base
        self._files: LRUCache[Key, AdapterFiles] = LRUCache(memory, lambda read: read.bytes)
        self._slots: LRUCache[Key, LoadedAdapter] = LRUCache(slots, lambda loaded: 1)
        self._templates: dict[str, AdapterTemplate] = {}
        self._ref_counts: Counter[AdapterVersion] = Counter()  # how many names and requests mean it
        self._composed: set[CompositeVersion] = set()  # that are in a slot, or were
        self._lock = threading.Lock()  # for moments
        self._loading = threading.RLock()  # one adapter is loaded at a time; others answer meanwhile
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="peftlab-prefetch")

    @property
    def bytes(self) -> int:
        """What tensors of adapters take of host memory."""
        return self._files.total_size

    @contextmanager
    def held(self, editions: Collection[Key]) -> Iterator[dict[Key, LoadedAdapter]]:
        """Adapters ready to answer, which stay so inside the block.

        Raises:
            AdapterNotFoundError: one is no longer in the store.
            IntegrityError: one is damaged, or does not fit the base.
            MemoryBudgetError: one is larger than all the memory for adapters.
        """
        with self._lock:
            for edition in editions:
                self._files.pin(edition)
                self._slots.pin(edition)
        try:
            yield {edition: self._resident(edition) for edition in editions}
        finally:
            with self._lock:
                for edition in editions:
                    self._slots.unpin(edition)
                    self._drop(self._files.unpin(edition))
                    self._tidy(edition)

    def files(self, edition: Key) -> AdapterFiles:
        """An adapter's verified tensors, of a composition those of its last part; raises as `held` does."""
        if isinstance(edition, CompositeVersion):
            return self.files(edition.parts[-1])
        with self._loading:
            with self._lock:
                read = self._files.get(edition)
            if read is None:
                read = self._read(edition)
                self._keep(edition, read)
            return read

    def retain(self, edition: Key) -> None:
        """Keep an adapter as long as there is room, from now until `release`, which is called as often."""
        with self._lock:
            self._ref_counts.update(parts_of(edition))

    def try_retain(self, edition: Key) -> bool:
        """`retain` it if it is wanted, and tell."""
        with self._lock:
            if wanted := all(part in self._ref_counts for part in parts_of(edition)):
                self._ref_counts.update(parts_of(edition))
            return wanted

    def release(self, edition: Key) -> None:
        """It will not be asked for again by one that wanted it; who holds it goes on with it."""
        with self._lock:
            for part in parts_of(edition):
                self._ref_counts[part] -= 1
                if not self._ref_counts[part]:
                    del self._ref_counts[part]
            for key in [edition, *parts_of(edition), *tuple(self._composed)]:
                self._tidy(key)

    def prefetch(self, editions: Collection[Key]) -> None:
        """Bring adapters up in the background; what goes wrong is told when they are asked for."""
        for edition in editions:
            if edition not in self._slots:
                self._ahead.submit(self._quietly, edition)

    def _quietly(self, edition: Key) -> None:
        with suppress(PeftlabError), self.held([edition]):
            pass

    def _resident(self, edition: Key) -> LoadedAdapter:
        if found := self._in_slot(edition):
            return found
        with self._loading:
            if found := self._in_slot(edition):  # by another thread, while this one waited
                return found
            loaded = self._made(edition)
            with self._lock:
                self._slots.put(edition, loaded)
            return loaded

    def _made(self, edition: Key) -> LoadedAdapter:
        if isinstance(edition, CompositeVersion):
            with self._lock:
                self._composed.add(edition)
            return composed(edition, [self._resident(part) for part in edition.parts])
        with self._lock:
            read = self._files.get(edition)
        if read is not None:
            return self._ready(read)
        read = self._read(edition)
        loaded = self._ready(read)
        self._keep(edition, read)  # last: nothing goes for what does not fit the base
        return loaded

    def _keep(self, edition: AdapterVersion, read: AdapterFiles) -> None:
        with self._lock:
            self._drop(self._files.put(edition, read))
            self._tidy(edition)

    def _in_slot(self, edition: Key) -> LoadedAdapter | None:
        with self._lock:
            self._files.get(edition)
            return self._slots.get(edition)

    def _ready(self, read: AdapterFiles) -> LoadedAdapter:
        """The first of its kind is made by PEFT, all others of its mould."""
        kind = read.kind
        if kind in self._templates:
            return self._templates[kind].instantiate(read)
        loaded, mould = extract_adapter(read, self._base.attach(read), self._base.router)
        if mould:
            self._templates[kind] = mould
        return loaded

    def _read(self, edition: AdapterVersion) -> AdapterFiles:
        try:
            read = read_files(self._store, str(edition))
        except (OSError, IntegrityError):
            self._check_there(edition)
            raise
        self._check_there(edition)
        self._check(read)
        return read

    def _check_there(self, edition: AdapterVersion) -> None:
        """It may be removed while it is read."""
        if self._store.resolve_version(str(edition)) != edition:
            raise AdapterNotFoundError(f"{edition} was removed, and published anew under the same number, meanwhile.")

    def _check(self, read: AdapterFiles) -> None:
        self._base.check(read)
        if self._files.budget is not None and read.bytes > self._files.budget:
            raise MemoryBudgetError(
                f"{read.adapter} takes {read.bytes:,} bytes, and all adapters together may take {self._files.budget:,}."
                " Give them more: --memory, or load(…, memory=…)."
            )

    def _tidy(self, edition: Key) -> None:
        """Nothing stays of what is neither wanted nor in use."""
        if not all(part in self._ref_counts for part in parts_of(edition)) and not self._files.is_pinned(edition):
            self._files.pop(edition)
            self._slots.pop(edition)
            if isinstance(edition, CompositeVersion):
                self._composed.discard(edition)

    def _drop(self, gone: Collection[Key]) -> None:
        for edition in gone:
            self._slots.pop(edition)

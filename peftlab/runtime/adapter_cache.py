"""The adapters of a bank at three levels: ready to predict (slots), tensors in host memory, files in the store.

An adapter that is used moves up. The least recently used ones move down: out of the slots if more than `slots` are
ready, out of host memory if tensors take more than `memory` bytes. On a CPU, slots and host memory share tensors. An
adapter that a request has pinned stays until it is unpinned. A load that fails changes nothing.
"""

import threading
from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from peftlab.errors import AdapterNotFoundError, IntegrityError, MemoryBudgetError, PeftlabError
from peftlab.runtime.adapter_files import AdapterFiles, read_files
from peftlab.runtime.adapter_template import AdapterTemplate, LoadedAdapter, extract_adapter
from peftlab.runtime.composition import CompositeVersion, compose_adapters, parts_of
from peftlab.runtime.loaded_base import LoadedBase
from peftlab.runtime.lru_cache import LRUCache
from peftlab.store import AdapterVersion, Store

AdapterKey = AdapterVersion | CompositeVersion


class AdapterCache:
    """The adapters of one store for one base. All methods are safe for threads."""

    def __init__(self, store: Store, base: LoadedBase, *, memory: int | None, slots: int | None) -> None:
        self._store = store
        self._base = base
        self._files: LRUCache[AdapterKey, AdapterFiles] = LRUCache(memory, lambda files: files.num_bytes)
        self._slots: LRUCache[AdapterKey, LoadedAdapter] = LRUCache(slots, lambda loaded: 1)
        self._files_read: dict[AdapterVersion, AdapterFiles] = {}
        self._templates: dict[str, AdapterTemplate] = {}
        self._references: Counter[AdapterVersion] = Counter()  # by how many names and requests a version is retained
        self._composites: set[CompositeVersion] = set()  # those that are or were in a slot
        self._lock = threading.Lock()  # guards the caches; never taken for long
        self._load_lock = threading.RLock()  # one adapter is loaded at a time; others predict meanwhile
        self._prefetch_pool = ThreadPoolExecutor(1, thread_name_prefix="peftlab-prefetch")

    @property
    def num_bytes(self) -> int:
        """Host memory that tensors of adapters take."""
        return self._files.total_size

    @contextmanager
    def pinned(self, keys: Collection[AdapterKey]) -> Iterator[dict[AdapterKey, LoadedAdapter]]:
        """Load adapters and keep them in their slots inside the block.

        Raises:
            AdapterNotFoundError: one is no longer in the store.
            IntegrityError: one is damaged, or does not fit the base.
            MemoryBudgetError: one is larger than the memory for all adapters.
        """
        with self._lock:
            for key in keys:
                self._files.pin(key)
                self._slots.pin(key)
        try:
            yield {key: self._get(key) for key in keys}
        finally:
            with self._lock:
                for key in keys:
                    self._slots.unpin(key)
                    self._clear_slots(self._files.unpin(key))
                    self._discard_unused(key)

    def files(self, key: AdapterKey) -> AdapterFiles:
        """The verified files of an adapter, or of the last part of a composition; raises the errors of `pinned`."""
        if isinstance(key, CompositeVersion):
            return self.files(key.parts[-1])
        with self._load_lock:
            with self._lock:
                files = self._files.get(key)
            if files is None:
                files = self._read_files(key)
                self._store_files(key, files)
            return files

    def find_reference(self, files: AdapterFiles, name: str, manifest_sha256: str) -> AdapterVersion:
        """The version of the adapter that a run started from, which is the reference of its rewards.

        Raises:
            IntegrityError: it is not in the store, or another adapter has its name.
        """
        try:
            version = self._store.resolve_version(name)
            found = self.files(version).adapter.manifest.manifest_sha256
        except AdapterNotFoundError:
            found = None
        if found != manifest_sha256:
            state = "is not in this store" if found is None else "in this store is another adapter"
            raise IntegrityError(
                f"the rewards of {files.adapter} compare it with {name}, from which it was tuned (method.start_from), "
                f"and {name} {state}. Name the store that has both (--store)."
            )
        return version

    def retain(self, key: AdapterKey) -> None:
        """Keep an adapter while there is room, until `release` has been called as many times as `retain`."""
        with self._lock:
            self._references.update(parts_of(key))

    def try_retain(self, key: AdapterKey) -> bool:
        """Retain an adapter if it is retained already; return whether it was."""
        with self._lock:
            if is_retained := self._is_retained(key):
                self._references.update(parts_of(key))
            return is_retained

    def release(self, key: AdapterKey) -> None:
        """Undo one `retain`; an adapter that nobody retains is discarded when it is not pinned."""
        with self._lock:
            for part in parts_of(key):
                self._references[part] -= 1
                if not self._references[part]:
                    del self._references[part]
            for released in [key, *parts_of(key), *tuple(self._composites)]:
                self._discard_unused(released)

    def load(self, version: AdapterVersion) -> str | None:
        """Load a version and retain it; return a warning if it was tuned on the base in another quantization."""
        with self.pinned([version]):  # raises if it does not fit the base
            self.retain(version)
            return self._base.quantization_warning(self.files(version))

    def prefetch(self, keys: Collection[AdapterKey]) -> None:
        """Load adapters in the background; an error is raised later, when the adapter is used."""
        for key in keys:
            if key not in self._slots:
                self._prefetch_pool.submit(self._try_load, key)

    def _try_load(self, key: AdapterKey) -> None:
        with suppress(PeftlabError), self.pinned([key]):
            pass

    def _get(self, key: AdapterKey) -> LoadedAdapter:
        if loaded := self._find(key):
            return loaded
        with self._load_lock:
            if loaded := self._find(key):  # another thread loaded it while this one waited
                return loaded
            loaded = self._load(key)
            with self._lock:
                self._slots.put(key, loaded)
            return loaded

    def _find(self, key: AdapterKey) -> LoadedAdapter | None:
        with self._lock:
            self._files.get(key)  # marks them as recently used
            return self._slots.get(key)

    def _load(self, key: AdapterKey) -> LoadedAdapter:
        if isinstance(key, CompositeVersion):
            with self._lock:
                self._composites.add(key)
            return compose_adapters(key, [self._get(part) for part in key.parts])
        with self._lock:
            files = self._files.get(key)
        if files is not None:
            return self._instantiate(files)
        files = self._read_files(key)
        loaded = self._instantiate(files)
        self._store_files(key, files)  # last, so that nothing is evicted for an adapter that does not fit the base
        return loaded

    def _store_files(self, key: AdapterVersion, files: AdapterFiles) -> None:
        with self._lock:
            self._clear_slots(self._files.put(key, files))
            self._discard_unused(key)

    def _instantiate(self, files: AdapterFiles) -> LoadedAdapter:
        """Make an adapter from the template of its kind; PEFT builds the first of a kind."""
        template_key = files.template_key
        if template_key in self._templates:
            return self._templates[template_key].instantiate(files)
        loaded, template = extract_adapter(files, self._base.attach(files), self._base.router)
        if template:
            self._templates[template_key] = template
        return loaded

    def reuse_files(self, key: AdapterVersion, files: AdapterFiles) -> None:
        """Use these files when this version is loaded next, instead of reading them again."""
        self._files_read[key] = files

    def _read_files(self, key: AdapterVersion) -> AdapterFiles:
        try:
            files = self._files_read.pop(key, None) or read_files(self._store, str(key))
        except (OSError, IntegrityError):
            self._check_not_replaced(key)
            raise
        self._check_not_replaced(key)
        self._base.check(files)
        self._check_size(files)
        return files

    def _check_not_replaced(self, key: AdapterVersion) -> None:
        """Raise AdapterNotFoundError if the version was removed while it was read."""
        if self._store.resolve_version(str(key)) != key:
            raise AdapterNotFoundError(
                f"{key} was removed and published again under the same number while it was read."
            )

    def _check_size(self, files: AdapterFiles) -> None:
        capacity = self._files.capacity
        if capacity is not None and files.num_bytes > capacity:
            raise MemoryBudgetError(
                f"{files.adapter} takes {files.num_bytes:,} bytes, and all adapters together may take {capacity:,}. "
                "Give them more: --memory, or load(…, memory=…)."
            )

    def _is_retained(self, key: AdapterKey) -> bool:
        return all(part in self._references for part in parts_of(key))

    def _discard_unused(self, key: AdapterKey) -> None:
        """Discard an adapter that is neither retained nor pinned."""
        if not self._is_retained(key) and not self._files.is_pinned(key):
            self._files.pop(key)
            self._slots.pop(key)
            if isinstance(key, CompositeVersion):
                self._composites.discard(key)

    def _clear_slots(self, keys: Collection[AdapterKey]) -> None:
        for key in keys:
            self._slots.pop(key)

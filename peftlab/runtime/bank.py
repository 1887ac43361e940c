"""The bank: many adapters in memory on one base; `load` creates a bank.

The weights of the base are in memory once. An adapter is at up to three levels: ready to predict (a slot), as verified
tensors (host memory), and in the store (disk); see `adapter_cache.py`. A request (`request.py`) resolves names to
versions once and keeps these versions: adapters that are published, rolled back, removed or evicted meanwhile do not
change it.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

import transformers
from peft import PeftModel

from peftlab.data import Row
from peftlab.errors import AdapterNotFoundError, suggest
from peftlab.runtime.adapter_cache import AdapterCache
from peftlab.runtime.adapter_files import AdapterFiles, read_files
from peftlab.runtime.adapter_template import LoadedAdapter
from peftlab.runtime.composition import (
    CompositeVersion,
    CompositionMode,
    check_same_outputs,
    is_ensemble,
    make_composition,
)
from peftlab.runtime.loaded_base import LoadedBase
from peftlab.runtime.options import BankOptions, BankSettings
from peftlab.runtime.registry import AdapterRegistry
from peftlab.runtime.request import Answer, NamedExample, NamedRow, Request, RowCallback
from peftlab.runtime.streaming import ReplyState, ReplyStream
from peftlab.store import STACK_SEPARATOR, Adapter, AdapterVersion, Store
from peftlab.tasks import Task
from peftlab.tasks.inputs.encoding import ProgressCallback
from peftlab.tasks.inputs.rows import InputRow


class Bank:
    """Many adapters on one base, the base of the first adapter that is added; safe for threads.

    Args:
        store: Where the adapters are published.
        options: device, quantization, precision, memory, slots, trust_remote_code; see `BankSettings`.
    """

    def __init__(self, store: Store, **options: Unpack[BankOptions]) -> None:
        self.store = store
        self._settings = BankSettings(**options)
        self._base: LoadedBase | None = None
        self._registry = AdapterRegistry(store)

    @property
    def names(self) -> list[str]:
        """The names that were added, in order."""
        return self._registry.names

    @property
    def warnings(self) -> list[str]:
        """Sentences about adapters.

        One for each that was tuned on the base in another quantization than the bank's, one for each new version that
        cannot be served, so that its name still means the previous version, and one for each adapter that was asked
        about texts that the base's tokenizer hardly knows.
        """
        return self._registry.warnings

    @property
    def base(self) -> LoadedBase:
        """The base that all adapters share.

        Raises:
            AdapterNotFoundError: no adapter was added, so there is no base yet.
        """
        if self._base is None:
            raise AdapterNotFoundError(f"no adapter was added. {suggest('', self.store.names(), what='Available')}")
        return self._base

    @property
    def num_bytes(self) -> int:
        """Host memory that tensors of adapters take."""
        return self._cache.num_bytes if self._base else 0

    def adapter(self, name: str) -> Adapter:
        """The published adapter of a name; of a stack, the top adapter."""
        return self._files(name).adapter

    def task(self, name: str) -> Task:
        """The task of an adapter, with its labels."""
        return self._files(name).task

    def model(self, name: str) -> transformers.PreTrainedModel:
        """Build a Transformers model with an adapter's delta and head, by PEFT, on the shared weights."""
        return self.base.attach(self._files(name)).model

    def full_precision_copy(self, name: str) -> PeftModel:
        """Build the same model on a separate fp32 base; quantized weights are dequantized."""
        return self.base.full_precision_copy(self._files(name))

    def is_routed(self, name: str) -> bool:
        """Whether an adapter's rows share forward passes with those of other adapters; virtual tokens cannot."""
        with self._pinned(name) as loaded:
            return loaded.is_routed

    def add(self, name: str) -> None:
        """Add an adapter: verify it and load it; does nothing if the name was added before.

        `lower+top` adds both adapters, and their stack under that name; see `compose`.

        Args:
            name: `name`, which means the store's current version at each request, or `name@version`.

        Raises:
            AdapterNotFoundError: no such adapter.
            BaseNotFoundError: its base is not found.
            IntegrityError: it is damaged, was tuned on another base, or needs code that is not trusted.
            MemoryBudgetError: it is larger than the memory for all adapters.
        """
        with self._registry.lock:
            if name in self.names:
                return
            if STACK_SEPARATOR in name:
                for part in (parts := name.split(STACK_SEPARATOR)):
                    self.add(part)
                self.compose(name, "stack", parts)
                return
            version = self.store.resolve_version(name)
            if self._base is None:
                self._load_base(version)
            self._registry.set_version(name, version)

    def _load_base(self, version: AdapterVersion) -> None:
        settings = self._settings
        files = read_files(self.store, str(version))
        base = LoadedBase(files.adapter, settings)
        self._cache = AdapterCache(self.store, base, memory=settings.memory, slots=settings.slots)
        self._cache.reuse_files(version, files)
        self._registry.cache = self._cache
        self._base = base

    def compose(
        self, name: str, mode: CompositionMode, names: Sequence[str], weights: Sequence[float] | None = None
    ) -> None:
        """Compose adapters into one, under a new name in this bank (not in the store).

        Each request resolves the names of the parts to their current versions.

        Args:
            name: The new name.
            mode: stack (the last one on top, with its head), average, or ensemble; see `composition.py`.
            names: Adapters that were added, from the lowest to the top.
            weights: Weights of an average or an ensemble; None for equal ones.

        Raises:
            AdapterNotFoundError: one was not added.
            IntegrityError: these adapters cannot be composed.
            ValueError: the name is taken, or there are too few names or weights.
        """
        with self._registry.lock:
            if name in self.names:
                raise ValueError(f"there is an adapter '{name}' in this bank already")
            self._registry.check_names(names)
            composition = make_composition(mode, names, weights)
            self._check_composition(self._registry.resolve_composition(composition))
            self._registry.set_composition(name, composition)

    def _check_composition(self, version: CompositeVersion) -> None:
        with self._cache.pinned(version.parts if is_ensemble(version) else [version]) as adapters:
            if is_ensemble(version):
                check_same_outputs(version, list(adapters.values()))

    def remove(self, name: str) -> None:
        """Remove an adapter; requests that began before keep it.

        Raises:
            AdapterNotFoundError: it was not added.
            ValueError: it is part of a composition.
        """
        with self._registry.lock:
            self._registry.remove(name)

    def prefetch(self, *names: str) -> None:
        """Load adapters in the background, before they are used.

        Raises:
            AdapterNotFoundError: one was not added.
        """
        keys = [self._registry.resolve(name) for name in names]
        self._cache.prefetch(keys)

    def merge(self, name: str) -> None:
        """Keep merged weights for an adapter's LoRA modules, in addition to the base, until `unmerge` or eviction.

        Its rows then take as much time as those of the base alone, but the merged weights take memory. Predictions stay
        the same, and the base does not change.

        Raises:
            AdapterNotFoundError: it was not added.
        """
        with self._pinned(name) as loaded:
            for update in loaded.updates:
                update.merge()

    def unmerge(self, name: str) -> None:
        """Free the memory that `merge` took; raises the same errors."""
        with self._pinned(name) as loaded:
            for update in loaded.updates:
                update.unmerge()

    def predict(
        self, rows: InputRow | Sequence[InputRow], *, adapters: str | Sequence[str] | None = None
    ) -> list[Answer]:
        """Predict rows, each through its adapter.

        Args:
            rows: One or several: a text, or a mapping with the columns of the adapter's task, such as `question` and
                `context`. A text alone is the first of these columns.
            adapters: One name for all rows, or one for each row; None for the only adapter.

        Returns:
            One answer for each row, in order. A text longer than the adapter's input is split into overlapping windows.

        Raises:
            AdapterNotFoundError: a name was not added.
            RecipeError: a task cannot read some rows; lists all of them.
            ValueError: there are not as many names as rows.
        """
        rows = [rows] if isinstance(rows, str | Mapping | Row) else list(rows)
        names = self._registry.for_rows(len(rows), adapters)
        with self._request() as request:
            examples = request.read_rows(list(zip(names, rows, strict=True)))
            return request.predict(examples)

    def stream(self, rows: Iterable[NamedRow], *, on_progress: RowCallback = lambda done: None) -> Iterator[Answer]:
        """Predict any number of (adapter name, row) pairs, in order, with a bounded number of them in memory.

        A name means the same version throughout. Adapters of the next rows are loaded in the background.

        Args:
            rows: The name of an adapter, and a row as for `predict`.
            on_progress: Called with the number of rows that are done.

        Raises:
            AdapterNotFoundError, RecipeError: as for `predict`, for a chunk of rows; earlier answers were yielded.
        """
        with self._request() as request:
            yield from request.stream(rows, on_progress)

    def stream_examples(
        self, examples: Sequence[NamedExample], on_progress: ProgressCallback = lambda done, total: None
    ) -> Iterator[Answer]:
        """Predict (adapter name, example of its task) pairs as `stream` predicts rows."""
        with self._request() as request:
            yield from request.stream_examples(examples, lambda done: on_progress(done, len(examples)))

    def predict_examples(
        self, name: str, examples: Sequence[Any], on_progress: ProgressCallback = lambda done, total: None
    ) -> list[Any]:
        """Predict examples of one adapter's task, in order; `on_progress` counts features."""
        with self._request() as request:
            return request.predict_all(name, examples, on_progress)

    def reply(
        self, chat: Sequence[Mapping[str, str]], *, adapter: str | None = None, base_only: bool = False
    ) -> ReplyStream:
        """Stream the reply to a chat, piece by piece; `close` stops it.

        After the last piece, `truncated` of the stream says whether the chat was too long, and `finished` is false if
        the reply stopped at `max_new_tokens`. Errors are raised with the first piece.

        Args:
            chat: Messages with `role` and `content`; the last is not an assistant's.
            adapter: The adapter that replies; None for the only adapter.
            base_only: Let the base reply without the adapter's delta, with its template and settings.

        Raises:
            AdapterNotFoundError: the adapter was not added.
            RecipeError: its task cannot read the chat.
            ValueError: its task has no chats, or it uses beam search, which cannot be streamed.
        """

        def pieces(state: ReplyState) -> Generator[str]:
            [name] = self._registry.for_rows(1, adapter)
            with self._request() as request:
                yield from request.reply(name, chat, state, base_only=base_only)

        return ReplyStream(pieces)

    @contextmanager
    def _request(self) -> Iterator[Request]:
        base = self.base  # raises if no adapter was added
        request = Request(self._registry.resolve, self._cache, base, self._settings.slots, self._registry.warn_once)
        try:
            yield request
        finally:
            request.close()

    def _files(self, name: str) -> AdapterFiles:
        with self._request() as request:
            return request.files(name)

    @contextmanager
    def _pinned(self, name: str) -> Iterator[LoadedAdapter]:
        with self._request() as request, self._cache.pinned([request.key(name)]) as adapters:
            yield adapters[request.key(name)]


def load(*names: str, store: str | Path = "adapters", **options: Unpack[BankOptions]) -> Bank:
    """Verify adapters and load them on one base.

    Args:
        names: `name`, which means the store's current version at each request, or `name@version`; all of one base.
            `lower+top` is a stack of two, with the head of the top adapter.
        store: Folder of the store.
        options:
            device: auto, cpu, cuda or mps.
            quantization: Quantization of the base in memory: none, 8bit or 4bit; None means that of the first adapter.
                `Bank.warnings` lists adapters that were tuned on another one.
            precision: Dtype of an unquantized base: fp32, bf16, fp16; auto means bf16 on a CPU with AMX, else fp32.
                Heads compute in fp32.
            memory: Host memory in bytes that tensors of adapters may take; None for no limit. The least recently used
                ones are read again when they are needed.
            slots: How many adapters may be ready at a time, on the device; None for no limit.
            trust_remote_code: Run Python code that comes with the base, if the adapter was tuned with it.

    Raises:
        AdapterNotFoundError: no such adapter.
        BaseNotFoundError: their base is not found.
        DeviceNotFoundError: there is no such device, or it cannot compute with a quantized base.
        IntegrityError: an adapter is damaged, was tuned on another base, or needs code that is not trusted.
        MemoryBudgetError: an adapter is larger than `memory`.
        ValueError: unknown quantization or precision, or less than one slot.
    """
    if not names:
        raise AdapterNotFoundError(f"name at least one adapter. {suggest('', Store(store).names(), what='Available')}")
    bank = Bank(Store(store), **options)
    for name in names:
        bank.add(name)
    return bank

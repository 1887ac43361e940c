"""The bank: adapters in memory beside one resident base.

The backbone's weights are in memory once. An adapter is there in up to three places: ready to answer (a slot), as its
verified tensors (host memory), and in the store (disk). Whatever is asked for moves up, and what was used longest ago
moves down when there is too much. Each request takes the adapters that its names mean when it begins and holds them
until it is done: nothing that is published, rolled back, removed or put out meanwhile touches it.
"""

import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypedDict, cast, get_args

import transformers
from peft import PeftModel

from peftlab.data import Row
from peftlab.errors import AdapterNotFoundError, suggest
from peftlab.recipe import Quantization
from peftlab.runtime.adapter_cache import AdapterCache, Key
from peftlab.runtime.adapter_files import AdapterFiles
from peftlab.runtime.adapter_template import LoadedAdapter
from peftlab.runtime.composition import (
    CompositeVersion,
    Composition,
    CompositionMode,
    check_same_outputs,
    composition,
    is_ensemble,
)
from peftlab.runtime.loaded_base import DTYPES, LoadedBase, Precision
from peftlab.runtime.request import Answer, Request
from peftlab.store import STACK_SEPARATOR, Adapter, AdapterVersion, Store
from peftlab.tasks import Task
from peftlab.tasks.inputs.encoding import ProgressCallback
from peftlab.tasks.inputs.rows import InputRow

QUANTIZATIONS = ("none", *get_args(Quantization))


class Serving(TypedDict, total=False):
    """How a bank holds its base and adapters: the keywords of `load`, for whoever hands them on."""

    device: str
    quantization: Literal["none"] | Quantization | None
    precision: Precision
    memory: int | None
    slots: int | None
    trust_remote_code: bool


def load(
    *names: str,
    store: str | Path = "adapters",
    device: str = "auto",
    quantization: Literal["none"] | Quantization | None = None,
    precision: Precision = "auto",
    memory: int | None = None,
    slots: int | None = None,
    trust_remote_code: bool = False,
) -> "Bank":
    """Verify adapters and put them beside one resident base.

    Args:
        names: `name`, which means the store's current version at each request, or `name@version`; all of one base.
            `lower+top` is one on top of the other, with the head of the top.
        store: Folder of the store.
        device: auto, cpu, cuda or mps.
        quantization: Hold the base so, whatever the adapters were tuned on (`Bank.notes` says where that differs); None
            takes it as the first was tuned on.
        precision: What an unquantized base computes in: fp32, bf16, fp16; auto takes bf16 on a CPU with AMX, else fp32.
            Heads compute in fp32.
        memory: Bytes that tensors of adapters may take of host memory; None for any number. Those used longest ago are
            read again when they are asked for.
        slots: How many adapters may be ready to answer at a time, on the device; None for any number.
        trust_remote_code: Run Python code that comes with the base, if the adapter was tuned with it.

    Raises:
        AdapterNotFoundError: no such adapter.
        BaseNotFoundError: their base is nowhere.
        DeviceNotFoundError: there is no such device, or it cannot compute with a quantized base.
        IntegrityError: an adapter is damaged, was tuned on another base, or needs code that is not trusted.
        MemoryBudgetError: an adapter is larger than `memory`.
        ValueError: no such quantization.
    """
    if not names:
        raise AdapterNotFoundError(f"name at least one adapter. {suggest('', Store(store).names(), what='There')}")
    bank = Bank(
        Store(store),
        device=device,
        quantization=quantization,
        precision=precision,
        memory=memory,
        slots=slots,
        trust_remote_code=trust_remote_code,
    )
    for name in names:
        bank.add(name)
    return bank


class Bank:
    """Adapters beside one base, which the first of them brings; safe to use from any number of threads.

    `notes` has a sentence for each adapter that was tuned on the base in another quantization than the one asked for,
    and for each new version that cannot be served in the place of the one before.
    """

    def __init__(
        self,
        store: Store,
        *,
        device: str = "auto",
        quantization: Literal["none"] | Quantization | None = None,
        precision: Precision = "auto",
        memory: int | None = None,
        slots: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if quantization is not None and quantization not in QUANTIZATIONS:
            raise ValueError(f"no quantization '{quantization}'. {suggest(str(quantization), QUANTIZATIONS)}")
        if precision not in ("auto", *DTYPES):
            raise ValueError(f"no precision '{precision}'. {suggest(precision, ('auto', *DTYPES))}")
        if slots is not None and slots < 1:
            raise ValueError(f"slots must be at least 1, not {slots}")
        self.store = store
        self.notes: list[str] = []
        self._options: dict[str, Any] = {
            "device": device,
            "quantization": quantization,
            "precision": precision,
            "trust_remote_code": trust_remote_code,
        }
        self._memory, self._slots = memory, slots
        self._base: LoadedBase | None = None
        self._current: dict[str, AdapterVersion] = {}
        self._composed: dict[str, Composition] = {}
        self._refused: set[AdapterVersion] = set()
        self._joining = threading.RLock()

    @property
    def names(self) -> list[str]:
        """What was added, as it was named, in order."""
        return [*self._current, *self._composed]

    @property
    def base(self) -> LoadedBase:
        """What all adapters share.

        Raises:
            AdapterNotFoundError: none was added, so there is none yet.
        """
        if self._base is None:
            raise AdapterNotFoundError(f"no adapter was added. {suggest('', self.store.names(), what='There')}")
        return self._base

    @property
    def bytes(self) -> int:
        """What tensors of adapters take of host memory."""
        return self._cache.bytes if self._base else 0

    def adapter(self, name: str) -> Adapter:
        """What the store holds under a name that was added."""
        return self._files(name).adapter

    def task(self, name: str) -> Task:
        """The task of an adapter, with its labels."""
        return self._files(name).task

    def model(self, name: str) -> transformers.PreTrainedModel:
        """The base with an adapter's delta and head, made anew by PEFT on the shared weights."""
        return self.base.attach(self._files(name)).model

    def full_precision_copy(self, name: str) -> PeftModel:
        """The same on a base of its own in fp32: a quantized one's with the weights that it is rounded to."""
        return self.base.full_precision_copy(self._files(name))

    def _files(self, name: str) -> AdapterFiles:
        with self._request() as request:
            return request.files(name)

    @contextmanager
    def _request(self) -> Iterator[Request]:
        request = Request(self._edition, self._cache, self.base, self._slots)
        try:
            yield request
        finally:
            request.end()

    @contextmanager
    def _held(self, name: str) -> Iterator[LoadedAdapter]:
        with self._request() as request, self._cache.held([request[name]]) as adapters_by_key:
            yield adapters_by_key[request[name]]

    def add(self, name: str) -> None:
        """Let an adapter join: verify it and bring it into memory; one that is here already stays as it is.

        `lower+top` are two that join, and their stack under that name; see `compose`.

        Raises:
            AdapterNotFoundError: no such adapter.
            BaseNotFoundError: its base is nowhere.
            IntegrityError: it is damaged, was tuned on another base, or needs code that is not trusted.
            MemoryBudgetError: it is larger than all the memory for adapters.
        """
        with self._joining:
            if name in self.names:
                return
            if STACK_SEPARATOR in name:
                for part in (parts := name.split(STACK_SEPARATOR)):
                    self.add(part)
                self.compose(name, "stack", parts)
                return
            edition = self.store.resolve_version(name)
            if self._base is None:
                base = LoadedBase(self.store.verify(str(edition)), **self._options)
                self._cache = AdapterCache(self.store, base, memory=self._memory, slots=self._slots)
                self._base = base
            self._join(name, edition)

    def _join(self, name: str, edition: AdapterVersion) -> None:
        """From here on `name` means this edition; raises as `add` does, and then it means what it did before."""
        with self._cache.held([edition]):  # what does not fit the base is told now
            self._cache.retain(edition)
            note = self.base.note_on(self._cache.files(edition))
        before = self._current.get(name)
        self._current[name] = edition
        if before:
            self._cache.release(before)
        if note:
            self.notes.append(note)

    def compose(
        self, name: str, way: CompositionMode, names: Sequence[str], weights: Sequence[float] | None = None
    ) -> None:
        """Let several adapters answer as one, under a name of its own in this bank (not in the store).

        It means what its parts mean at each request, new versions included.

        Args:
            name: To be asked for by `predict`.
            way: stack (the last on top, with its head), average, or ensemble; see `composition.py`.
            names: Adapters that were added, from the lowest to the top.
            weights: Of an average or an ensemble; equal without.

        Raises:
            AdapterNotFoundError: one was not added.
            IntegrityError: they cannot be put together so.
            ValueError: the name is taken, or weights or names are too few.
        """
        with self._joining:
            if name in self.names:
                raise ValueError(f"there is an adapter '{name}' in this bank already")
            for part in names:
                self._check_name(part, self._current)
            self._composed[name] = composition(way, names, weights)
            try:
                self._check_composed(name)
            except BaseException:  # whatever it is, the bank is as it was
                del self._composed[name]
                raise

    def _check_composed(self, name: str) -> None:
        edition = cast(CompositeVersion, self._edition(name))
        with self._cache.held(edition.parts if is_ensemble(edition) else [edition]) as adapters_by_key:
            if is_ensemble(edition):
                check_same_outputs(edition, list(adapters_by_key.values()))

    def remove(self, name: str) -> None:
        """Let an adapter leave: requests that have it go on with it, later ones do not find it.

        Raises:
            AdapterNotFoundError: it was not added.
            ValueError: it is part of a composition.
        """
        with self._joining:
            self._check_name(name)
            if user := next((user for user, made in self._composed.items() if name in made.names), None):
                raise ValueError(f"'{name}' is part of '{user}'; remove that first")
            if name in self._composed:
                del self._composed[name]
            else:
                self._cache.release(self._current.pop(name))

    def routed(self, name: str) -> bool:
        """Whether an adapter's rows share passes with those of others; virtual tokens have passes of their own."""
        with self._held(name) as loaded:
            return loaded.routed

    def prefetch(self, *names: str) -> None:
        """Bring adapters up in the background, before they are asked for.

        Raises:
            AdapterNotFoundError: one was not added.
        """
        self._cache.prefetch([self._edition(name) for name in names])

    def merge(self, name: str) -> None:
        """Keep the weights that a LoRA makes of the base's beside them, until `unmerge` or it goes out of its slot.

        Rows of an adapter that has most of the traffic then cost what the bare base costs; the memory is that of the
        adapted weights. Answers stay the same, and the base is never touched.

        Raises:
            AdapterNotFoundError: it was not added.
        """
        with self._held(name) as loaded:
            for update in loaded.updates:
                update.merge()

    def unmerge(self, name: str) -> None:
        """Give the memory of `merge` back; raises as it does."""
        with self._held(name) as loaded:
            for update in loaded.updates:
                update.unmerge()

    def predict(
        self, rows: InputRow | Sequence[InputRow], *, adapters: str | Sequence[str] | None = None
    ) -> list[Answer]:
        """Each row through its adapter.

        Args:
            rows: One or several: a text, or a mapping with the columns of the adapter's task, such as `question` and
                `context`. A bare text is the first of these columns.
            adapters: One name for all rows, or one a row; None takes the only adapter there is.

        Returns:
            One answer a row, in order. Texts longer than the adapter's input go through in overlapping windows.

        Raises:
            AdapterNotFoundError: a name was not added.
            RecipeError: a row is not what its task takes; lists every such row.
            ValueError: not as many names as rows.
        """
        asked = [rows] if isinstance(rows, str | Mapping | Row) else list(rows)
        names = self._names_for(len(asked), adapters)
        with self._request() as request:
            examples = request.examples(list(zip(names, asked, strict=True)))
            return list(request.answers_to(zip(names, examples, strict=True)))

    def reply(
        self, chat: Sequence[Mapping[str, str]], *, adapter: str | None = None, bare: bool = False
    ) -> Generator[str]:
        """What an adapter's assistant says to a chat, in pieces as they are written; who stops listening stops it.

        Args:
            chat: Messages with `role` and `content`, the last not an assistant's.
            adapter: One that writes; None takes the only adapter there is.
            bare: Let the base reply, by this adapter's template and settings, without its delta.

        Raises:
            AdapterNotFoundError: it was not added.
            RecipeError: the chat is not what its task takes.
            ValueError: its task does not write, or it searches by beams, which are not heard before they end.
        """
        name = self._names_for(1, adapter)[0]
        with self._request() as request:
            yield from request.reply(name, chat, bare=bare)

    def stream(
        self, rows: Iterable[tuple[str, InputRow]], *, told: Callable[[int], None] = lambda done: None
    ) -> Iterator[Answer]:
        """Answers to any number of (adapter's name, row), in order, with a bounded number of them in memory.

        A name means the same version throughout. Adapters of the rows to come are prefetched. `told` hears how many
        rows are computed.

        Raises:
            AdapterNotFoundError, RecipeError: as for `predict`, of a chunk of rows; answers to those before it have
                been given by then.
        """
        with self._request() as request:
            yield from request.stream(rows, told)

    def run(self, name: str, examples: Sequence[Any], told: ProgressCallback = lambda done, total: None) -> list[Any]:
        """Predictions for examples of the adapter's own task, in order; `told` hears how far it is."""
        with self._request() as request:
            return request.predictions(name, examples, told)

    def stream_examples(
        self, asked: Sequence[tuple[str, Any]], told: ProgressCallback = lambda done, total: None
    ) -> Iterator[Answer]:
        """Answers to (adapter's name, example of its own task), in order; `told` hears how many are computed."""
        with self._request() as request:
            yield from request.answers_to(asked, lambda done: told(done, len(asked)))

    def _names_for(self, rows: int, adapters: str | Sequence[str] | None) -> list[str]:
        if adapters is None:
            if len(self._current) != 1:
                raise AdapterNotFoundError(f"say which adapter each text goes through: {', '.join(self.names)}.")
            adapters = next(iter(self._current))
        names = [adapters] * rows if isinstance(adapters, str) else list(adapters)
        if len(names) != rows:
            raise ValueError(f"{rows} texts need {rows} adapter names, not {len(names)}")
        return names

    def _check_name(self, name: str, known: Collection[str] | None = None) -> None:
        there = (self._current, self._composed) if known is None else (known,)
        if not any(name in names for names in there):
            raise AdapterNotFoundError(f"'{name}' was not loaded. {suggest(name, chain(*there), what='Loaded')}")

    def _edition(self, name: str) -> Key:
        """What a name means now."""
        self._check_name(name)
        if made := self._composed.get(name):
            return CompositeVersion(made.way, tuple(map(self._version, made.names)), made.weights)
        return self._version(name)

    def _version(self, name: str) -> AdapterVersion:
        """The store's current version, or the one before where that cannot be served."""
        edition = self.store.resolve_version(name)
        if edition == self._current.get(name):
            return edition
        with self._joining:
            self._check_name(name)
            if edition != self._current[name] and edition not in self._refused:
                self._follow(name, edition)
            return self._current[name]

    def _follow(self, name: str, edition: AdapterVersion) -> None:
        """Let a name mean what was published or rolled back to since; what cannot be served is noted, and refused."""
        try:
            self._join(name, edition)
        except AdapterNotFoundError:  # it is gone again
            pass
        except Exception as fault:  # whatever it is, requests have the one before
            self._refused.add(edition)
            self.notes.append(f"{name} still means {self._current[name]}, since {edition} cannot be served: {fault}")

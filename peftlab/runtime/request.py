"""One request to the bank: what names mean while it lasts, and the way from rows to answers."""

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar, cast

from torch import Tensor

from peftlab.errors import ErrorCollector, PeftlabError
from peftlab.runtime.adapter_cache import AdapterCache, Key
from peftlab.runtime.adapter_files import AdapterFiles
from peftlab.runtime.adapter_template import LoadedAdapter
from peftlab.runtime.composition import is_ensemble, mean_logits
from peftlab.runtime.forward import forward_features
from peftlab.runtime.generation import generate_texts
from peftlab.runtime.loaded_base import LoadedBase
from peftlab.runtime.streaming import stream_text
from peftlab.tasks import Feature, Prediction
from peftlab.tasks.inputs.encoding import ProgressCallback, encode_examples
from peftlab.tasks.inputs.rows import InputRow, read_input_rows
from peftlab.tasks.prediction import Outcome, predict_features, with_reference

AT_A_TIME = 1024  # rows of a long list that are in memory as features
Item = TypeVar("Item")
Heard = Callable[[int], None]
"""Hears how many rows are done."""


@dataclass(frozen=True)
class Answer:
    """One row through one adapter. `prediction` is of the adapter's task, such as `EntityPrediction`."""

    adapter: str
    prediction: Prediction

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: `adapter`, then the prediction's own."""
        return {"adapter": self.adapter, **self.prediction.as_dict()}


class Request(dict[str, Key]):
    """What each name means: told when it is first asked for, the same until the end, and kept for it until then.

    Nothing that is published, rolled back or removed meanwhile touches it.
    """

    def __init__(self, meaning: Callable[[str], Key], tiers: AdapterCache, base: LoadedBase, slots: int | None) -> None:
        super().__init__()
        self._meaning, self._cache, self._base, self._slots = meaning, tiers, base, slots

    def __missing__(self, name: str) -> Key:
        while not self._cache.try_retain(edition := self._meaning(name)):
            pass  # another took its place just now
        self[name] = edition
        return edition

    def end(self) -> None:
        """What nobody else wants may go."""
        for edition in self.values():
            self._cache.release(edition)

    def files(self, name: str) -> AdapterFiles:
        """An adapter's verified files; raises as `AdapterCache.files` does."""
        return self._cache.files(self[name])

    def examples(self, asked: Sequence[tuple[str, InputRow]], first: int = 1) -> list[Any]:
        """What (adapter's name, row) pairs ask; `first` is the number of the first row.

        Raises:
            RecipeError: rows are not what their tasks take; lists them all.
        """
        tasks = {name: self.files(name).task for name in dict.fromkeys(name for name, _ in asked)}
        with ErrorCollector() as errors:
            return list(read_input_rows(asked, tasks, errors, first=first))

    def stream(self, rows: Iterable[tuple[str, InputRow]], told: Heard) -> Iterator[Answer]:
        """Answers to (adapter's name, row) pairs, a chunk after the other; the next one's adapters are prefetched."""
        done = 0
        for chunk in _looked_ahead(_chunks(rows), self._prefetch):
            names, examples = [name for name, _ in chunk], self.examples(chunk, done + 1)
            yield from self._answers(list(zip(names, examples, strict=True)), _in_rows(told, done, len(chunk)))
            done += len(chunk)

    def reply(self, name: str, chat: Sequence[Mapping[str, str]], *, bare: bool) -> Generator[str]:
        """The pieces of what an adapter, or the bare base in its place, replies; see `Bank.reply`."""
        read, base = self.files(name), self._base
        if not read.task.chats:
            raise ValueError(f"{read.adapter} is for {read.task.type}; a chat needs one that answers messages")
        if read.task.options["generation"].get("num_beams", 1) > 1:
            raise ValueError(f"{read.adapter} searches by beams, which are not heard before they end; use predict")
        examples = self.examples([(name, {"messages": [dict(message) for message in chat]})])
        (feature,) = self.encode(read, examples)[0]
        inputs = base.inputs_for(read.task)
        with (self._held_bare if bare else self._cache.held)([self[name]]) as adapters_by_key:
            loaded = adapters_by_key[self[name]]
            write = partial(generate_texts, [(loaded, feature)], base.router, inputs)
            yield from stream_text(write, read.task.endings(inputs), inputs)

    def answers_to(self, asked: Iterable[tuple[str, Any]], told: Heard = lambda done: None) -> Iterator[Answer]:
        """Answers to (adapter's name, example) pairs, in order."""
        done = 0
        for chunk in _chunks(asked):
            yield from self._answers(chunk, _in_rows(told, done, len(chunk)))
            done += len(chunk)

    def predictions(self, name: str, examples: Sequence[Any], told: ProgressCallback) -> list[Any]:
        """What one adapter says of examples of its task, in order."""
        read, edition = self.files(name), self[name]
        forward_rows = lambda features: self.outcomes([(edition, feature) for feature in features], told)  # noqa: E731
        return predict_features(read.task, examples, self._referred(name, examples), forward_rows)

    def _prefetch(self, chunk: Sequence[tuple[str, InputRow]]) -> None:
        for name in dict.fromkeys(name for name, _ in chunk):
            with suppress(PeftlabError):  # told in its turn
                self._cache.prefetch([self[name]])

    def _answers(self, chunk: Sequence[tuple[str, Any]], told: ProgressCallback) -> list[Answer]:
        groups: dict[str, list[int]] = {}
        for i, (name, _) in enumerate(chunk):
            groups.setdefault(name, []).append(i)
        reads = {name: self.files(name) for name in groups}
        encoded = {name: self._referred(name, [chunk[i][1] for i in mine]) for name, mine in groups.items()}
        asked = [(self[name], f) for name, rows in encoded.items() for windows in rows for f in windows]
        outputs = iter(self.outcomes(asked, told))
        answers: dict[int, Answer] = {}
        for name, mine in groups.items():
            examples = [chunk[i][1] for i in mine]
            taken = predict_features(reads[name].task, examples, encoded[name], lambda f: [next(outputs) for _ in f])
            answers |= {i: Answer(name, prediction) for i, prediction in zip(mine, taken, strict=True)}
        return [answers[i] for i in range(len(chunk))]

    def encode(self, read: AdapterFiles, examples: Sequence[Any]) -> list[list[Feature]]:
        """The features of each example of an adapter's task."""
        length, inputs = read.adapter.manifest.max_length, self._base.inputs_for(read.task)
        return encode_examples(read.task, inputs, examples, max_length=length, training=False)

    def _referred(self, name: str, examples: Sequence[Any]) -> list[list[Feature]]:
        """The features of each example, with what the bare base makes of them if the task asks for it."""
        read, edition = self.files(name), self[name]
        return with_reference(read.task, self.encode(read, examples), partial(self._by_base, edition))

    def _by_base(self, edition: Key, features: Sequence[Feature]) -> list[Outcome]:
        """The outcome of each feature by an adapter's task, without its delta."""
        asked, base = [(edition, feature) for feature in features], self._base
        return forward_features(asked, self._held_bare, base.router, base.inputs, most=self._slots)

    @contextmanager
    def _held_bare(self, editions: Collection[Key]) -> Iterator[dict[Key, LoadedAdapter]]:
        """As `AdapterCache.held`, but the bare base answers in each one's place."""
        with self._cache.held(editions) as adapters_by_key:
            yield {edition: loaded.bare for edition, loaded in adapters_by_key.items()}

    def outcomes(
        self, asked: Sequence[tuple[Key, Feature]], told: ProgressCallback = lambda done, total: None
    ) -> list[Outcome]:
        """Of each feature by its adapter, in order; of an ensemble, the mean of its parts' logits."""
        base = self._base
        single = [(part, feature) for edition, feature in asked for part in _asked_of(edition)]
        given = iter(forward_features(single, self._cache.held, base.router, base.inputs, most=self._slots, told=told))
        return [
            mean_logits(edition, cast(list[Tensor], [next(given) for _ in edition.parts]))
            if is_ensemble(edition)
            else next(given)
            for edition, _ in asked
        ]


def _asked_of(edition: Key) -> Sequence[Key]:
    """Whom a feature goes through."""
    return edition.parts if is_ensemble(edition) else [edition]


def _chunks(rows: Iterable[Item]) -> Iterator[list[Item]]:
    """Lists of `AT_A_TIME`, the last one shorter."""
    left = iter(rows)
    while chunk := list(islice(left, AT_A_TIME)):
        yield chunk


def _in_rows(told: Heard, before: int, rows: int) -> ProgressCallback:
    """Hears of the inputs that `rows` were made into, and tells how many rows that is, with those `before` them."""
    return lambda done, total: told(before + rows * done // total)


def _looked_ahead(chunks: Iterator[Item], told: Callable[[Item], None]) -> Iterator[Item]:
    """The same; `told` hears of each one before the one in front of it is used."""
    before: list[Item] = []
    for chunk in chunks:
        told(chunk)
        yield from before
        before = [chunk]
    yield from before

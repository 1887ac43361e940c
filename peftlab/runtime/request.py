"""One request to a bank: rows → examples → features → outputs → predictions.

A request resolves each adapter name once and retains that version until it is closed. Publishing, rolling back or
removing an adapter meanwhile does not change it.
"""

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar, cast

from torch import Tensor

from peftlab.errors import ErrorCollector, PeftlabError
from peftlab.runtime.adapter_cache import AdapterCache, AdapterKey
from peftlab.runtime.adapter_files import AdapterFiles
from peftlab.runtime.adapter_template import LoadedAdapter
from peftlab.runtime.composition import average_logits, is_ensemble
from peftlab.runtime.forward import forward_features
from peftlab.runtime.generation import generate_texts
from peftlab.runtime.loaded_base import LoadedBase
from peftlab.runtime.streaming import ReplyState, stream_text
from peftlab.tasks import Feature, Prediction, Task
from peftlab.tasks.inputs.encoding import ProgressCallback, encode_examples
from peftlab.tasks.inputs.rows import InputRow, read_input_rows
from peftlab.tasks.prediction import FeatureOutput, predict_features

CHUNK_SIZE = 1024  # rows of a long list that are encoded at a time
Item = TypeVar("Item")
NamedRow = tuple[str, InputRow]
"""The name of an adapter, and a row for it."""
NamedExample = tuple[str, Any]
"""The name of an adapter, and an example of its task."""
RowCallback = Callable[[int], None]
"""Called with the number of rows that are done."""


@dataclass(frozen=True)
class Answer:
    """The prediction of an adapter for a row; its class is that of the adapter's task, such as `EntityPrediction`."""

    adapter: str
    prediction: Prediction

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON: `adapter`, then those of the prediction."""
        return {"adapter": self.adapter, **self.prediction.as_dict()}


@dataclass(frozen=True)
class _EncodedRows:
    """The rows of one adapter in a chunk: their indices there, their examples, and the features of each example."""

    name: str
    key: AdapterKey
    task: Task
    indices: list[int]
    examples: list[Any]
    features: list[list[Feature]]


class Request:
    """Predicts rows, and resolves each adapter name only once.

    Args:
        resolve: Returns the current version or composition of a name.
        cache: The adapters in memory.
        base: The base they share.
        slots: How many adapters a batch may have; None for any number.
        warn: Called with the name of an adapter and a warning about its rows.
    """

    def __init__(
        self,
        resolve: Callable[[str], AdapterKey],
        cache: AdapterCache,
        base: LoadedBase,
        slots: int | None,
        warn: Callable[[str, str], None],
    ) -> None:
        self._resolve, self._cache, self._base, self._slots, self._warn = resolve, cache, base, slots, warn
        self._keys: dict[str, AdapterKey] = {}

    def key(self, name: str) -> AdapterKey:
        """The version or composition of a name in this request."""
        if name not in self._keys:
            while not self._cache.try_retain(key := self._resolve(name)):
                pass  # replaced by a new version between the two calls
            self._keys[name] = key
        return self._keys[name]

    def close(self) -> None:
        """Release all versions."""
        for key in self._keys.values():
            self._cache.release(key)

    def files(self, name: str) -> AdapterFiles:
        """The verified files of an adapter; raises the errors of `AdapterCache.files`."""
        return self._cache.files(self.key(name))

    def read_rows(self, rows: Sequence[NamedRow], first: int = 1) -> list[NamedExample]:
        """Let each adapter's task read its rows; `first` is the number of the first row.

        Raises:
            RecipeError: tasks cannot read some rows; lists all of them.
        """
        names = [name for name, _ in rows]
        tasks = {name: self.files(name).task for name in dict.fromkeys(names)}
        with ErrorCollector() as errors:
            examples = list(read_input_rows(rows, tasks, errors, first=first))
        return list(zip(names, examples, strict=True))

    def predict(self, examples: Iterable[NamedExample]) -> list[Answer]:
        """Predict all examples, in order."""
        return [answer for chunk in _chunks(examples) for answer in self._predict_chunk(chunk)]

    def predict_all(self, name: str, examples: Sequence[Any], on_progress: ProgressCallback) -> list[Any]:
        """Predict examples of one adapter together, in batches of similar length over all of them."""
        return [answer.prediction for answer in self._predict_chunk([(name, e) for e in examples], on_progress)]

    def stream(self, rows: Iterable[NamedRow], on_progress: RowCallback) -> Iterator[Answer]:
        """Read and predict rows chunk by chunk, in order."""
        num_done = 0
        for chunk in self._prefetched_chunks(rows):
            examples = self.read_rows(chunk, first=num_done + 1)
            yield from self._predict_chunk(examples, _count_rows(on_progress, num_done, len(chunk)))
            num_done += len(chunk)

    def stream_examples(self, examples: Iterable[NamedExample], on_progress: RowCallback) -> Iterator[Answer]:
        """Predict examples chunk by chunk, in order."""
        num_done = 0
        for chunk in self._prefetched_chunks(examples):
            yield from self._predict_chunk(chunk, _count_rows(on_progress, num_done, len(chunk)))
            num_done += len(chunk)

    def reply(
        self, name: str, chat: Sequence[Mapping[str, str]], state: ReplyState, *, base_only: bool
    ) -> Generator[str]:
        """Stream the reply of an adapter, or of the base alone, to a chat; see `Bank.reply`."""
        files, key, router = self.files(name), self.key(name), self._base.router
        generation = files.task.outputs.chat_generation(str(files.adapter), files.task.type)
        examples = [example for _, example in self.read_rows([(name, {"messages": [dict(m) for m in chat]})])]
        [[feature]] = self.encode(files, examples)
        state.truncated = feature.truncated
        inputs = self._base.inputs_for(files.task)
        with (self._pinned_base_only if base_only else self._cache.pinned)([key]) as adapters:
            generate = partial(generate_texts, [(adapters[key], feature)], router, inputs)
            yield from stream_text(generate, generation.find_stop_strings(inputs), inputs, state)

    def _prefetched_chunks(self, pairs: Iterable[tuple[str, Item]]) -> Iterator[list[tuple[str, Item]]]:
        """Yield chunks of (adapter name, item); the adapters of the next chunk are loaded in the background."""
        previous: list[tuple[str, Item]] = []
        for chunk in _chunks(pairs):
            self._prefetch(dict.fromkeys(name for name, _ in chunk))
            if previous:
                yield previous
            previous = chunk
        if previous:
            yield previous

    def _prefetch(self, names: Iterable[str]) -> None:
        for name in names:
            with suppress(PeftlabError):  # raised again when the chunk is predicted
                self._cache.prefetch([self.key(name)])

    def _predict_chunk(
        self, examples: Sequence[NamedExample], on_progress: ProgressCallback = lambda done, total: None
    ) -> list[Answer]:
        """Encode examples, run all their features through the base together, and decode the outputs, in order."""
        encoded = list(self._encode_by_adapter(examples))
        features = [(rows.key, feature) for rows in encoded for windows in rows.features for feature in windows]
        outputs = iter(self.forward(features, on_progress))
        answers: dict[int, Answer] = {}
        for rows in encoded:
            predictions = predict_features(
                rows.task, rows.examples, rows.features, lambda features: list(islice(outputs, len(features)))
            )
            answers |= {i: Answer(rows.name, p) for i, p in zip(rows.indices, predictions, strict=True)}
        return [answers[i] for i in range(len(examples))]

    def _encode_by_adapter(self, examples: Sequence[NamedExample]) -> Iterator[_EncodedRows]:
        indices: dict[str, list[int]] = {}
        for i, (name, _) in enumerate(examples):
            indices.setdefault(name, []).append(i)
        for name, rows in indices.items():
            files, key, own_examples = self.files(name), self.key(name), [examples[i][1] for i in rows]
            features = files.task.outputs.attach_references(
                self.encode(files, own_examples), partial(self._forward_reference, files, key)
            )
            self._warn_of_unknown_text(name, files, own_examples, features)
            yield _EncodedRows(name, key, files.task, rows, own_examples, features)

    def _warn_of_unknown_text(
        self, name: str, files: AdapterFiles, examples: Sequence[Any], features: Sequence[Sequence[Feature]]
    ) -> None:
        inputs = self._base.inputs_for(files.task)
        if inputs.has_unknown([feature for windows in features for feature in windows]):
            texts = [text for example in examples for text in example.texts]
            if warning := inputs.coverage(texts).warning(f"the rows for {name}"):
                self._warn(name, warning)

    def encode(self, files: AdapterFiles, examples: Sequence[Any]) -> list[list[Feature]]:
        """The features of each example: several if its text is longer than the adapter's input."""
        max_length, inputs = files.adapter.manifest.max_length, self._base.inputs_for(files.task)
        return encode_examples(files.task, inputs, examples, max_length=max_length, training=False)

    def forward(
        self,
        features: Sequence[tuple[AdapterKey, Feature]],
        on_progress: ProgressCallback = lambda done, total: None,
    ) -> list[FeatureOutput]:
        """The output of each feature by its adapter; for an ensemble, the mean of its parts' logits."""
        base = self._base
        parts = [(part, feature) for key, feature in features for part in _forward_keys(key)]
        outputs = iter(
            forward_features(
                parts,
                self._cache.pinned,
                base.router,
                base.inputs,
                max_adapters=self._slots,
                on_progress=on_progress,
            )
        )
        return [
            average_logits(key, cast(list[Tensor], list(islice(outputs, len(key.parts)))))
            if is_ensemble(key)
            else next(outputs)
            for key, _ in features
        ]

    def _forward_reference(
        self, files: AdapterFiles, key: AdapterKey, features: Sequence[Feature]
    ) -> list[FeatureOutput]:
        """The output of each feature by the reference model: the base alone, or the adapter that the run started from.

        Raises:
            IntegrityError: that adapter is not in the store, or has changed.
        """
        base, reference = self._base, files.task.state.get("reference") if features else None
        pinned = self._cache.pinned if reference else self._pinned_base_only
        reference_key = self._cache.find_reference(files, *reference) if reference else key
        pairs = [(reference_key, feature) for feature in features]
        return forward_features(pairs, pinned, base.router, base.inputs, max_adapters=self._slots)

    @contextmanager
    def _pinned_base_only(self, keys: Collection[AdapterKey]) -> Iterator[dict[AdapterKey, LoadedAdapter]]:
        """Like `AdapterCache.pinned`, but without the adapters' deltas."""
        with self._cache.pinned(keys) as adapters:
            yield {key: loaded.base_only for key, loaded in adapters.items()}


def _forward_keys(key: AdapterKey) -> Sequence[AdapterKey]:
    """The adapters that compute a feature: one, or the parts of an ensemble."""
    return key.parts if is_ensemble(key) else [key]


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Yield lists of `CHUNK_SIZE` items; the last one may be shorter."""
    remaining = iter(items)
    while chunk := list(islice(remaining, CHUNK_SIZE)):
        yield chunk


def _count_rows(on_progress: RowCallback, num_done: int, num_rows: int) -> ProgressCallback:
    """Convert progress in features of a chunk of `num_rows` rows to rows, after `num_done` earlier ones."""
    return lambda done, total: on_progress(num_done + num_rows * done // total)

"""Named entities and other labelled spans: one tag a word, entities read off the tags.

Each word is decided at its first sub-word token; the others carry no loss. Scores are over entities on words, as
seqeval and the CoNLL scorer count: an entity is right when its first word, last word and type are.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.errors import Problems, suggest
from peftlab.tasks.contract import Example, Feature, Prediction, Scores, Task
from peftlab.tasks.tag_schemes import WordSpan, spans_from_tags, tags_from_spans
from peftlab.tasks.words import join_tokens, split_words

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # what torch's cross entropy leaves out
OVERLAP = 0.25  # share of a window that the next one repeats, so that every word is once away from an edge


@dataclass(frozen=True)
class TaggedText(Example):
    """A text, (start, end) of its words in characters, and its entities as spans of words."""

    words: tuple[tuple[int, int], ...] = ()
    spans: tuple[WordSpan, ...] = ()

    def tokens(self) -> list[str]:
        """The words as strings."""
        return [self.text[start:end] for start, end in self.words]


@dataclass(frozen=True)
class Entity:
    """A labelled stretch of the text: `text[start:end]`, with the mean probability of its words' tags."""

    start: int
    end: int
    label: str
    score: float
    text: str


@dataclass(frozen=True)
class Entities(Prediction):
    """The entities of one text, in order, and the IOB2 tag of each of its words."""

    entities: tuple[Entity, ...]
    tags: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """`text` and `entities`; offsets count characters of the text."""
        return {"text": self.text, "entities": [asdict(entity) for entity in self.entities]}


class TokenClassificationTask(Task):
    """Rows have `tokens` and `tags`, or `text` and `entities` ({start, end, label} in characters)."""

    type = "token-classification"
    targets = "entities"
    main_score = "f1"
    auto_class = "AutoModelForTokenClassification"
    peft_task_type = "TOKEN_CLS"

    def __init__(self, *, labels: list[str], tag_scheme: str = "auto") -> None:
        self.labels = labels
        self.tag_scheme = tag_scheme

    @property
    def head_labels(self) -> list[str]:
        """IOB2: O, then B- and I- of each entity type."""
        return ["O", *(f"{prefix}-{label}" for label in self.labels for prefix in "BI")]

    def read(self, row: Row) -> TaggedText:
        """A row → words and entities. Raises RowError with what was expected."""
        if {"tokens", "tags"} <= row.fields.keys():
            return self._read_tokens(row)
        if {"text", "entities"} <= row.fields.keys():
            return self._read_entities(row)
        raise RowError(
            f"expected columns tokens and tags, or text and entities; found {', '.join(row.fields) or 'none'}. "
            "Map yours under data.columns, our name first, as in 'tokens: words'."
        )

    def read_text(self, text: str) -> TaggedText:
        """A bare text, split into words."""
        return TaggedText(text=text, words=tuple(split_words(text)))

    def _read_tokens(self, row: Row) -> TaggedText:
        tokens, tags = (_string_list(row.fields[name], name) for name in ("tokens", "tags"))
        if len(tokens) != len(tags):
            raise RowError(f"expected as many tags as tokens, found {len(tags)} tags for {len(tokens)} tokens")
        try:
            spans = spans_from_tags(tags, self.tag_scheme)
        except ValueError as error:
            raise RowError(str(error)) from None
        text, words = join_tokens(tokens)
        opened_by_i = sum(tags[start][0] == "I" for start, _, _ in spans)
        notes = {"entities opened by I- (IOB1, or a missing B-)": opened_by_i}
        return TaggedText(text, row.where, 0, notes, tuple(words), tuple(spans))

    def _read_entities(self, row: Row) -> TaggedText:
        text = row.fields["text"]
        if not isinstance(text, str):
            raise RowError(f"expected text to be a string, found {type(text).__name__}")
        words = split_words(text)
        spans: list[WordSpan] = []
        widened = lost = 0
        for start, end, label in _character_spans(row.fields["entities"], text):
            inside = [i for i, (first, last) in enumerate(words) if first < end and last > start]
            if not inside or (spans and inside[0] < spans[-1][1]):
                lost += 1  # only blanks, or a word that the entity before has taken already
                continue
            widened += (words[inside[0]][0], words[inside[-1]][1]) != (start, end)
            spans.append((inside[0], inside[-1] + 1, label))
        return TaggedText(
            text, row.where, lost, {"entities widened to whole words": widened}, tuple(words), tuple(spans)
        )

    def learn_labels(self, examples: Mapping[str, Sequence[TaggedText]], problems: Problems) -> None:
        """Entity types of the training rows in alphabetical order, unless the recipe lists them."""
        given = bool(self.labels)
        if not given:
            self.labels = sorted({label for example in examples["train"] for _, _, label in example.spans})
        if not self.labels and examples["train"]:
            problems.add("the training rows hold no entity.", key="data.train")
        for split, rows in examples.items():
            seen = Counter(label for example in rows for _, _, label in example.spans)
            for label in sorted(seen.keys() - set(self.labels)):
                where = next(row.where for row in rows if any(kind == label for _, _, kind in row.spans))
                missing_in = "task.labels" if given else "the training rows"
                problems.add(
                    f"label '{label}' occurs in {split} ({seen[label]}×, first at {where}) but not in {missing_in}.",
                    key=f"data.{split}",
                    hint=suggest(label, self.labels, what="Labels there"),
                )

    def encode(
        self, example: TaggedText, tokenizer: "PreTrainedTokenizerBase", max_length: int, *, cut: bool
    ) -> list[Feature]:
        """Words → sub-word tokens with their tags; see `Task.encode`."""
        tokens = example.tokens()
        if not tokens:
            return []
        if cut:
            return [self._feature(example, tokens, 0, tokenizer, max_length)]
        whole = tokenizer(tokens, is_split_into_words=True, verbose=False)
        if len(whole["input_ids"]) <= max_length:
            return [self._feature(example, tokens, 0, tokenizer, max_length)]
        pieces = Counter(word for word in whole.word_ids() if word is not None)
        room = max_length - tokenizer.num_special_tokens_to_add()
        windows = split_into_windows([pieces[word] for word in range(len(tokens))], room, int(room * OVERLAP))
        return [self._feature(example, tokens[a:b], a, tokenizer, max_length) for a, b in windows]

    def _feature(
        self, example: TaggedText, tokens: list[str], first: int, tokenizer: "PreTrainedTokenizerBase", max_length: int
    ) -> Feature:
        """The words from number `first` on, as one input of at most `max_length` tokens."""
        encoded = tokenizer(tokens, is_split_into_words=True, truncation=True, max_length=max_length)
        first_pieces: dict[int, int] = {}
        for position, word in enumerate(encoded.word_ids()):
            if word is not None:
                first_pieces.setdefault(word, position)
        tags = tags_from_spans(list(example.spans), len(example.words))
        classes = {tag: number for number, tag in enumerate(self.head_labels)}
        labels = [IGNORED] * len(encoded["input_ids"])
        for word, position in first_pieces.items():
            labels[position] = classes[tags[first + word]]
        positions = [(position, first + word) for word, position in first_pieces.items()]
        return Feature(dict(encoded), labels, positions)

    def count(self, example: TaggedText) -> int:
        """Its entities."""
        return len(example.spans)

    def lost(self, example: TaggedText, features: Iterable[Feature]) -> int:
        """Entities with a word that no feature decides."""
        covered = {word for feature in features for _, word in feature.positions}
        return sum(not covered.issuperset(range(first, end)) for first, end, _ in example.spans)

    def is_cut(self, example: TaggedText, features: Iterable[Feature]) -> bool:
        """Whether words at the end are missing."""
        return _covered(features) < len(example.words)

    def collate(self, features: Sequence[Feature], tokenizer: "PreTrainedTokenizerBase") -> dict[str, "torch.Tensor"]:
        """Pad inputs as the tokenizer does and labels with -100: each tensor is (batch, tokens)."""
        import torch

        batch = dict(tokenizer.pad([feature.inputs for feature in features], return_tensors="pt"))
        width = batch["input_ids"].shape[1]
        left = tokenizer.padding_side == "left"
        labels = []
        for feature in features:
            padding = [IGNORED] * (width - len(feature))
            labels.append(padding + feature.labels if left else feature.labels + padding)
        batch["labels"] = torch.tensor(labels)
        return batch

    def decode(self, example: TaggedText, features: Sequence[Feature], logits: Sequence["torch.Tensor"]) -> Entities:
        """The best well-formed tags → entities; a word in several windows counts where it is farthest from an edge."""
        from peftlab.tasks.tag_decoding import best_tags

        names = self.head_labels
        chances = self._chances(len(example.words), features, logits)
        classes = best_tags(chances, names)
        scores = [float(chances[word, number].exp()) for word, number in enumerate(classes)]
        tags = [names[number] for number in classes]
        entities = [self._entity(example, span, scores) for span in spans_from_tags(tags)]
        return Entities(example.text, tuple(entities), tuple(tags))

    def _chances(self, words: int, features: Sequence[Feature], logits: Sequence["torch.Tensor"]) -> "torch.Tensor":
        """Log probabilities (words, head labels); a word without tokens (a control character) is surely O."""
        import torch

        chances = torch.full((words, len(self.head_labels)), -100.0)
        chances[:, 0] = 0.0
        best_distance = [-1] * words
        for feature, output in zip(features, logits, strict=True):
            told = output.float().log_softmax(-1)
            last = len(feature.positions) - 1
            for nth, (position, word) in enumerate(feature.positions):
                distance = min(nth, last - nth)
                if distance > best_distance[word]:
                    best_distance[word], chances[word] = distance, told[position]
        return chances

    def _entity(self, example: TaggedText, span: WordSpan, scores: list[float]) -> Entity:
        first, end, label = span
        start, stop = example.words[first][0], example.words[end - 1][1]
        mean = sum(scores[first:end]) / (end - first)
        return Entity(start, stop, label, round(mean, 4), example.text[start:stop])

    def score(self, examples: Sequence[TaggedText], predictions: Sequence[Entities]) -> Scores:
        """Entity precision, recall and F1 by seqeval (micro average, and per type)."""
        from seqeval.metrics import classification_report

        if not any(example.spans for example in examples) and not any(set(p.tags) - {"O"} for p in predictions):
            return Scores({"precision": 0.0, "recall": 0.0, "f1": 0.0}, {})  # seqeval takes a mean over no label

        gold = [tags_from_spans(list(example.spans), len(example.words)) for example in examples]
        report = classification_report(gold, [list(p.tags) for p in predictions], output_dict=True, zero_division=0)
        rows = {name: _plain_scores(values) for name, values in report.items() if not name.endswith(" avg")}
        overall = _plain_scores(report["micro avg"])
        return Scores({name: overall[name] for name in ("precision", "recall", "f1")}, rows)


def split_into_windows(sizes: Sequence[int], room: int, overlap: int) -> list[tuple[int, int]]:
    """Cut words of so many tokens each into overlapping windows of at most `room` tokens: (first word, end).

    A word wider than `room` gets a window of its own. No word is left out.
    """
    windows: list[tuple[int, int]] = []
    start = 0
    while True:
        end, used = start, 0
        while end < len(sizes) and (used + sizes[end] <= room or end == start):
            used += sizes[end]
            end += 1
        windows.append((start, end))
        if end == len(sizes):
            return windows
        back, repeated = end, 0
        fits = min(overlap, room - sizes[end])  # the window must reach a new word
        while back - 1 > start and repeated + sizes[back - 1] <= fits:
            back -= 1
            repeated += sizes[back]
        start = back


def _covered(features: Iterable[Feature]) -> int:
    """The number of words, from the first on, that the features reach."""
    return max((word + 1 for feature in features for _, word in feature.positions), default=0)


def _plain_scores(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        "precision": float(values["precision"]),
        "recall": float(values["recall"]),
        "f1": float(values["f1-score"]),
        "support": int(values["support"]),
    }


def _string_list(value: Any, name: str) -> list[str]:
    """A list of strings; table cells may hold it as JSON or separated by blanks."""
    if isinstance(value, str):
        value = _json_cell(value, name) if value.lstrip().startswith("[") else value.split()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RowError(f"expected {name} to be a list of strings, found {_shown(value)}")
    return value


def _character_spans(value: Any, text: str) -> list[tuple[int, int, str]]:
    """Entities of a row in order of their start, each inside the text and none overlapping another."""
    entities = _json_cell(value, "entities") if isinstance(value, str) else value
    if not isinstance(entities, list):
        raise RowError(f"expected entities to be a list of {{start, end, label}}, found {_shown(entities)}")
    spans = sorted(_character_span(entity, text) for entity in entities)
    for (start, end, _), (next_start, next_end, _) in pairwise(spans):
        if next_start < end:
            raise RowError(
                f"entities '{text[start:end]}' ({start}–{end}) and '{text[next_start:next_end]}' "
                f"({next_start}–{next_end}) overlap; token classification takes flat entities only"
            )
    return spans


def _character_span(entity: Any, text: str) -> tuple[int, int, str]:
    match entity:
        case {"start": int(start), "end": int(end), "label": str(label)} if 0 <= start < end <= len(text) and label:
            return start, end, label
    raise RowError(
        f"expected an entity {{start, end, label}} with 0 ≤ start < end ≤ {len(text)}, found {_shown(entity)}"
    )


def _json_cell(value: str, name: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise RowError(f"expected {name} as JSON; {error.msg} at column {error.colno}") from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

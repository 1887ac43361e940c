"""Named entities and other labelled spans: one tag a word, entities read off the tags.

Each word is decided at its first sub-word token; the others carry no loss. Scores are over entities on words, as
seqeval and the CoNLL scorer count: an entity is right when its first word, last word and type are.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from peftlab.data import Row
from peftlab.data.rows import BlankRowError, RowError
from peftlab.errors import ErrorCollector
from peftlab.imports import seqeval_metrics, torch
from peftlab.tasks.heads import TokenHead
from peftlab.tasks.inputs.columns import chosen_form, optional_text_column, string_list, text_column
from peftlab.tasks.inputs.entity_spans import read_entities
from peftlab.tasks.inputs.features import IGNORED, Feature
from peftlab.tasks.inputs.tag_cells import find_scheme, read_tags, refuse_one_word_rows
from peftlab.tasks.inputs.text import TextInputs
from peftlab.tasks.inputs.text_pair import inputs_of
from peftlab.tasks.inputs.word_windows import one_window, windows_of_words
from peftlab.tasks.inputs.words import are_characters, join_tokens, split_characters, split_words
from peftlab.tasks.labels.class_weights import ClassWeights, fit_class_weights
from peftlab.tasks.labels.label_set import fit_labels_from_examples
from peftlab.tasks.labels.tag_schemes import WordSpan, are_tags, spans_from_tags, tags_from_spans, types_in_tags
from peftlab.tasks.labels.viterbi import best_tags
from peftlab.tasks.metrics.calibration import (
    TEMPERATURE,
    Calibration,
    describe_temperature,
    fit_class_temperature,
    measure_calibration,
    temperature_of,
)
from peftlab.tasks.task import Example, Metric, Prediction, Scores, Targets, Task

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class TaggedText(Example):
    """A text, (start, end) of its words in characters, and its entities as spans of words."""

    words: tuple[tuple[int, int], ...] = ()
    spans: tuple[WordSpan, ...] = ()
    by_character: bool = False
    """Whether the tokens of the row are characters, as in corpora of scripts without spaces."""

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
class EntityPrediction(Prediction):
    """The entities of one text, in order, and the IOB2 tag of each of its words."""

    entities: tuple[Entity, ...]
    tags: tuple[str, ...]

    words: tuple[tuple[int, int], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """`text` and `entities`; offsets count characters of the text."""
        return {"text": self.text, "entities": [asdict(entity) for entity in self.entities]}

    def as_conll(self, scheme: str = "iob2") -> str:
        """A word, a tab and its tag a line, in iob1, iob2 or iobes."""
        tags = tags_from_spans(spans_from_tags(list(self.tags)), len(self.tags), scheme)
        lines = (f"{self.text[start:end]}\t{tag}\n" for (start, end), tag in zip(self.words, tags, strict=True))
        return "".join(lines)


class TokenClassificationTask(Task):
    """Rows have `tokens` and `tags`, or `text` and `entities` ({start, end, label} in characters)."""

    type = "token-classification"

    def __init__(
        self,
        *,
        labels: list[str] | None = None,
        tag_scheme: str = "auto",
        tag_names: list[str] | None = None,
        class_weights: ClassWeights = None,
        label_smoothing: float = 0.0,
    ) -> None:
        if labels and are_tags(labels):
            labels, tag_names = types_in_tags(labels), labels
        super().__init__(labels=labels)
        self.tag_scheme = tag_scheme
        self.tag_names = tag_names
        self._scheme = tag_scheme
        self.class_weights, self.label_smoothing = class_weights, label_smoothing
        self.weights: list[float] | None = None
        self.metric = Metric("f1", self.score, fit_temperature=self.fit_temperature)
        self.targets = Targets("entities", self.count, self.lost, self.labels_of)

    def output_help(self) -> str:
        """How to read tags: words, not tokens, have them."""
        tags = "A word's tag is read at its first token; peftlab takes the best well-formed sequence of tags."
        return f"{tags}{describe_temperature(self.state)}"

    @property
    def head(self) -> TokenHead:
        """IOB2: O, then B- and I- of each entity type; the first token of a word has its tag."""
        head = TokenHead(["O", *(f"{prefix}-{label}" for label in self.labels for prefix in "BI")])
        head.weights, head.label_smoothing = self.weights, self.label_smoothing
        return head

    @property
    def options(self) -> dict[str, Any]:
        """The tags by number, if the recipe lists them."""
        return {"tag_names": self.tag_names} if self.tag_names else {}

    def inspect_rows(self, rows: Sequence[Row], errors: ErrorCollector) -> None:
        """Find the tag scheme of a split, and refuse a file with one word a row."""
        refuse_one_word_rows(rows, errors)
        self._scheme = find_scheme(rows, self.tag_names, errors) if self.tag_scheme == "auto" else self.tag_scheme

    def read(self, row: Row) -> TaggedText:
        """A row → words and entities. Raises RowError with what was expected."""
        form = chosen_form(row, ("tokens", "tags"), ("text", "entities"))
        return self._read_tokens(row) if form[0] == "tokens" else self._read_entities(row)

    def read_input(self, row: Row) -> TaggedText:
        """Read a text and split it into words, or into characters if the training rows were; or read `tokens`."""
        if chosen_form(row, ("tokens",), ("text",))[0] == "tokens":
            text, words = join_tokens(string_list(row.fields["tokens"], "tokens"))
            return TaggedText(text, row.where, words=tuple(words))
        text = optional_text_column(row, "text")
        split = split_characters if self.state.get("unit") == "character" else split_words
        return TaggedText(text, row.where, words=tuple(split(text)))

    def _read_tokens(self, row: Row) -> TaggedText:
        tokens, tags = string_list(row.fields["tokens"], "tokens"), read_tags(row.fields["tags"], self.tag_names)
        if not "".join(tokens).strip():
            raise BlankRowError("expected tokens to hold some text, found none")
        if len(tokens) != len(tags):
            raise RowError(f"expected as many tags as tokens, found {len(tags)} tags for {len(tokens)} tokens")
        try:
            spans = spans_from_tags(tags, self._scheme)
        except ValueError as error:
            raise RowError(str(error)) from None
        text, words = join_tokens(tokens)
        opened_by_i = 0 if self._scheme == "io" else sum(tags[start][0] == "I" for start, _, _ in spans)
        warnings = {"entities opened by I- (IOB1, or a missing B-)": opened_by_i}
        return TaggedText(text, row.where, 0, warnings, tuple(words), tuple(spans), are_characters(tokens))

    def _read_entities(self, row: Row) -> TaggedText:
        text = text_column(row, "text")
        words = split_words(text)
        spans: list[WordSpan] = []
        widened = lost = 0
        found, corrected = read_entities(row.fields["entities"], text)
        for start, end, label in found:
            inside = [i for i, (first, last) in enumerate(words) if first < end and last > start]
            if not inside or (spans and inside[0] < spans[-1][1]):
                lost += 1  # only blanks, or a word that the entity before has taken already
                continue
            widened += (words[inside[0]][0], words[inside[-1]][1]) != (start, end)
            spans.append((inside[0], inside[-1] + 1, label))
        warnings = {"entities widened to whole words": widened, **corrected}
        return TaggedText(text, row.where, lost, warnings, tuple(words), tuple(spans))

    def fit_labels(self, examples: Mapping[str, Sequence[TaggedText]], errors: ErrorCollector) -> None:
        """Entity types of the training rows by the alphabet, unless the recipe lists them, and the unit of tags."""
        self.labels = fit_labels_from_examples(self.labels, examples, self.labels_of, errors)
        if "O" in self.labels:
            hint = "List entity types, or all tags in the order of their numbers, as in [O, B-PER, I-PER]."
            errors.add("'O' is no entity type.", key="task.labels", hint=hint)
        if not self.labels and examples["train"]:
            errors.add("the training rows hold no entity.", key="data.train")
        self.weights = self._tag_weights(examples["train"], errors)
        by_character = sum(example.by_character for example in examples["train"])
        self.state = {"unit": "character" if 2 * by_character > len(examples["train"]) else "word"}

    def _tag_weights(self, examples: Sequence[TaggedText], errors: ErrorCollector) -> list[float] | None:
        """The weight of each tag in the loss; numbers by name are those of O and of both tags of an entity type."""
        if self.class_weights != "balanced":
            by_type = fit_class_weights(self.class_weights, {}, ["O", *self.labels], errors)
            return by_type and [by_type[0], *(weight for weight in by_type[1:] for _ in "BI")]
        tags = (tags_from_spans(list(example.spans), len(example.words)) for example in examples)
        counts = Counter(tag for sequence in tags for tag in sequence)
        return fit_class_weights("balanced", counts, self.head.labels, errors)

    def encode(
        self, examples: Sequence[TaggedText], inputs: TextInputs, max_length: int, *, training: bool
    ) -> list[list[Feature]]:
        """Words → sub-word tokens with their tags; see `Task.encode`."""
        tokenizer = inputs.tokenizer
        tokens = [example.tokens() for example in examples]
        windows = list(map(one_window, tokens)) if training else windows_of_words(tokens, tokenizer, max_length)
        flat = [(number, window) for number, found in enumerate(windows) for window in found]
        made: list[list[Feature]] = [[] for _ in examples]
        if not flat:
            return made
        stretches = [tokens[number][start:end] for number, (start, end) in flat]
        encoded = tokenizer(stretches, is_split_into_words=True, truncation=True, max_length=max_length)
        classes = {tag: number for number, tag in enumerate(self.head.labels)}
        for i, (number, window) in enumerate(flat):
            if encoded["input_ids"][i]:  # else its words have no tokens
                words = encoded.word_ids(i)
                # a word that the tokenizer deletes has no token, but is not cut
                truncated = any(not {*cut.word_ids, None} <= {*words, None} for cut in encoded.encodings[i].overflowing)
                feature = _feature(examples[number], window, inputs_of(encoded, i), words, classes)
                made[number].append(replace(feature, truncated=truncated))
        return made

    def labels_of(self, example: TaggedText) -> list[str]:
        """The types of its entities."""
        return [kind for _, _, kind in example.spans]

    def count(self, example: TaggedText) -> int:
        """Its entities."""
        return len(example.spans)

    def lost(self, example: TaggedText, features: Sequence[Feature]) -> int:
        """Entities with a word that no feature decides."""
        covered = {word for feature in features for _, word in feature.positions}
        return sum(not covered.issuperset(range(first, end)) for first, end, _ in example.spans)

    def decode(
        self, example: TaggedText, features: Sequence[Feature], logits: Sequence["torch.Tensor"]
    ) -> EntityPrediction:
        """The best well-formed tags → entities; a word in several windows counts where it is farthest from an edge."""
        names = self.head.labels
        probabilities = self._log_probabilities(len(example.words), features, logits)
        classes = best_tags(probabilities, names)
        scores = [float(probabilities[word, number].exp()) for word, number in enumerate(classes)]
        tags = [names[number] for number in classes]
        entities = [self._entity(example, span, scores) for span in spans_from_tags(tags)]
        return EntityPrediction(example.text, tuple(entities), tuple(tags), example.words)

    def _log_probabilities(
        self, words: int, features: Sequence[Feature], logits: Sequence["torch.Tensor"]
    ) -> "torch.Tensor":
        """Log probabilities (words, head labels); a word without tokens (a control character) is surely O."""
        probabilities = torch.full((words, len(self.head.labels)), -100.0)
        probabilities[:, 0] = 0.0
        best_distance = [-1] * words
        for feature, output in zip(features, logits, strict=True):
            prediction = (output.float() / temperature_of(self.state)).log_softmax(-1)
            last = len(feature.positions) - 1
            for nth, (position, word) in enumerate(feature.positions):
                distance = min(nth, last - nth)
                if distance > best_distance[word]:
                    best_distance[word], probabilities[word] = distance, prediction[position]
        return probabilities

    def _entity(self, example: TaggedText, span: WordSpan, scores: list[float]) -> Entity:
        first, end, label = span
        start, stop = example.words[first][0], example.words[end - 1][1]
        mean = sum(scores[first:end]) / (end - first)
        return Entity(start, stop, label, round(mean, 4), example.text[start:stop])

    def fit_temperature(
        self,
        examples: Sequence[TaggedText],
        features: Sequence[Sequence[Feature]],
        outputs: Sequence[Sequence["torch.Tensor"]],
    ) -> None:
        """Set the temperature at which the tags of `examples` are most probable."""
        rows = [
            (output[position], feature.labels[position])
            for windows, results in zip(features, outputs, strict=True)
            for feature, output in zip(windows, results, strict=True)
            for position, _ in feature.positions
        ]
        if rows:
            logits = torch.stack([output.float() for output, _ in rows]).numpy()
            self.state[TEMPERATURE] = fit_class_temperature(logits, [label for _, label in rows])

    def score(self, examples: Sequence[TaggedText], predictions: Sequence[EntityPrediction]) -> Scores:
        """Entity precision, recall and F1 by seqeval (micro average, and per type)."""
        if not any(example.spans for example in examples) and not any(set(p.tags) - {"O"} for p in predictions):
            return Scores({"precision": 0.0, "recall": 0.0, "f1": 0.0}, {})  # seqeval takes a mean over no label

        gold = [tags_from_spans(list(example.spans), len(example.words)) for example in examples]
        report = seqeval_metrics.classification_report(
            gold, [list(p.tags) for p in predictions], output_dict=True, zero_division=0
        )
        rows = {name: _plain_scores(values) for name, values in report.items() if not name.endswith(" avg")}
        overall = _plain_scores(report["micro avg"])
        values = {name: overall[name] for name in ("precision", "recall", "f1")}
        return Scores(values, rows, calibration=_calibration(examples, predictions))


def _calibration(examples: Sequence[TaggedText], predictions: Sequence[EntityPrediction]) -> Calibration | None:
    """Calibration of the predicted entities: their scores, and whether their words and types are right."""
    pairs = []
    for example, prediction in zip(examples, predictions, strict=True):
        gold = {(example.words[first][0], example.words[end - 1][1], kind) for first, end, kind in example.spans}
        pairs += [(entity.score, (entity.start, entity.end, entity.label) in gold) for entity in prediction.entities]
    return measure_calibration([score for score, _ in pairs], [right for _, right in pairs])


def _feature(
    example: TaggedText,
    window: tuple[int, int],
    inputs: dict[str, list[int]],
    words: Sequence[int | None],
    classes: Mapping[str, int],
) -> Feature:
    """A window of words as the model takes it; `words` numbers the word of each token from the window's first."""
    first, _ = window
    first_tokens: dict[int, int] = {}
    for position, word in enumerate(words):
        if word is not None:
            first_tokens.setdefault(word, position)
    tags = tags_from_spans(list(example.spans), len(example.words))
    labels = [IGNORED] * len(words)
    for word, position in first_tokens.items():
        labels[position] = classes[tags[first + word]]
    positions = tuple((position, first + word) for word, position in first_tokens.items())
    return Feature(inputs, labels, positions)


def _plain_scores(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        "precision": float(values["precision"]),
        "recall": float(values["recall"]),
        "f1": float(values["f1-score"]),
        "support": int(values["support"]),
    }

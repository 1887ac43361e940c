"""The relation between two marked spans of a text, read off the text with markers around them (`marked_spans.py`).

A text that is too long keeps what is nearest to the spans. Scores are those of SemEval-2010 task 8's official scorer:
macro F1 over relations, without the negative class; labels such as `Cause-Effect(e1,e2)` name a relation and its
direction, and a wrong direction counts as wrong.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.errors import ErrorCollector, suggest
from peftlab.imports import sklearn_metrics, torch
from peftlab.tasks.heads import ClassificationHead, left_padding
from peftlab.tasks.inputs.columns import chosen_form, optional_text_column, quoted, text_column
from peftlab.tasks.inputs.entity_markers import (
    ENTITY_POSITIONS,
    FORMS,
    MarkedText,
    Span,
    has_marks,
    keep_nearest,
    marked_text,
    marker_offsets,
    read_spans,
)
from peftlab.tasks.inputs.features import Feature
from peftlab.tasks.inputs.text import TextInputs
from peftlab.tasks.inputs.text_pair import encode_sequences
from peftlab.tasks.labels.class_weights import ClassWeights, fit_class_weights
from peftlab.tasks.labels.label_set import fit_labels_from_examples
from peftlab.tasks.metrics.calibration import (
    TEMPERATURE,
    describe_temperature,
    fit_class_temperature,
    measure_calibration,
    temperature_of,
)
from peftlab.tasks.task import Confusion, Metric, Prediction, Scores, Targets, Task

if TYPE_CHECKING:
    from torch import Tensor

    from peftlab.tasks.inputs.inputs import Batch

NEGATIVE_LABELS = ("Other", "no_relation", "NA", "none")
_DIRECTION = re.compile(r"\((?:e1|head),\s*(?:e2|tail)\)$|\((?:e2|tail),\s*(?:e1|head)\)$")
_BACKWARD = re.compile(r"\((?:e2|tail),\s*(?:e1|head)\)$")


class RelationHead(ClassificationHead):
    """One relation per input, read by default at the first marker token of head and tail.

    These are the *entity start* states of Baldini Soares et al. 2019 (arXiv:1906.03158).
    """

    poolings = (*ClassificationHead.poolings, "entity-start")
    default_pooling = "entity-start"

    def extra_inputs(self, features: Sequence[Feature], mask: "Tensor | None") -> "Batch":
        """`ENTITY_POSITIONS`, (batch, 2), counted with the padding on the left; nothing for another pooling."""
        if self.pooling != "entity-start":
            return {}
        assert mask is not None
        positions = [[token for token, _ in feature.positions] for feature in features]
        return {ENTITY_POSITIONS: torch.tensor(positions, device=mask.device) + left_padding(mask)}

    def random_extra_inputs(self, mask: "Tensor | None") -> "Batch":
        """The first two tokens of each row."""
        assert mask is not None
        return self.extra_inputs([Feature({}, None, positions=((0, 0), (1, 1)))] * len(mask), mask)


@dataclass(frozen=True)
class RelationPrediction(Prediction):
    """The relation of a head to a tail, with its probability."""

    head: Span
    tail: Span
    label: str
    score: float
    backward: bool
    """Whether the label says that the relation goes from tail to head."""

    def as_dict(self) -> dict[str, Any]:
        """`text`, `head`, `tail`, `label`, `backward` and `score`; offsets count characters of the text."""
        ends = {name: {**asdict(span), "text": self.text[span.start : span.end]} for name, span in self.ends.items()}
        prediction = {"label": self.label, "backward": self.backward, "score": round(self.score, 4)}
        return {"text": self.text, **ends, **prediction}

    @property
    def ends(self) -> dict[str, Span]:
        """Both spans by their roles."""
        return {"head": self.head, "tail": self.tail}


class RelationExtractionTask(Task):
    """Rows have `label` and `text` with `head` and `tail` ({start, end, type?}), or with `<e1>…</e1>`, or tokens.

    With `tokens`, head and tail count tokens, or `tags` mark them: B-head I-head, B-tail (also e1 and e2).
    """

    type = "relation-extraction"

    def __init__(
        self,
        *,
        labels: list[str] | None = None,
        negative_label: str | None = None,
        class_weights: ClassWeights = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(labels=labels)
        self.negative_label = negative_label
        self.class_weights, self.label_smoothing = class_weights, label_smoothing
        self.weights: list[float] | None = None
        self.metric = Metric("f1", self.score, fit_temperature=self.fit_temperature)
        self.targets = Targets("relations", self.count, labels_of=self.labels_of)

    @property
    def head(self) -> RelationHead:
        """One output per relation."""
        head = RelationHead(self.labels, self.weights, pooling=self.state.get("pooling"))
        head.label_smoothing = self.label_smoothing
        return head

    def output_help(self) -> str:
        """How spans are marked in the model's input."""
        marks = "Spans are marked in the text: `@ * type * head @`, `# ^ type ^ tail #`; types in lower case, if known."
        return f"{marks}{describe_temperature(self.state)}"

    @property
    def options(self) -> dict[str, Any]:
        """What prediction depends on."""
        return {"negative_label": self.negative_label}

    def read(self, row: Row) -> MarkedText:
        """A row → a text with two spans and a relation. Raises RowError with what was expected."""
        forms = [("text",)] if has_marks(row.fields.get("text")) else FORMS
        chosen_form(row, *((*form, "label") for form in forms))
        label = row.fields["label"]
        if not isinstance(label, str) or not label.strip():
            raise RowError(f"expected label to be the name of a relation, found {quoted(label)}")
        return replace(read_spans(row, text_column), label=label.strip())

    def read_input(self, row: Row) -> MarkedText:
        """A text with two spans, as columns or marked by `<e1>…</e1>` and `<e2>…</e2>`."""
        return read_spans(row, optional_text_column)

    def fit_labels(self, examples: Mapping[str, Sequence[MarkedText]], errors: ErrorCollector) -> None:
        """Relations of the training rows, unless the recipe lists them, and which of them is the negative one."""
        self.labels = fit_labels_from_examples(self.labels, examples, self.labels_of, errors)
        counts = Counter(label for example in examples["train"] for label in self.labels_of(example))
        self.weights = fit_class_weights(self.class_weights, counts, self.labels, errors)
        if self.negative_label is None:
            self.negative_label = next((label for label in NEGATIVE_LABELS if label in self.labels), None)
        elif self.negative_label not in self.labels:
            hint = suggest(self.negative_label, self.labels, what="Available labels")
            errors.add(f"no training row has the label '{self.negative_label}'.", key="task.negative_label", hint=hint)
        if len(self.labels) < 2 and examples["train"]:
            errors.add(
                f"the training rows hold {len(self.labels)} relation(s); nothing to tell apart.", key="data.train"
            )

    def encode(
        self, examples: Sequence[MarkedText], inputs: TextInputs, max_length: int, *, training: bool
    ) -> list[list[Feature]]:
        """The marked text of each, in one feature whose positions are the first markers; see `Task.encode`."""
        tokenizer = inputs.tokenizer
        labels = [self.labels.index(row.label) if row.label is not None else None for row in examples]
        texts = [marked_text(row) for row in examples]
        budget = max_length - tokenizer.num_special_tokens_to_add()
        ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        long = {i for i, tokens in enumerate(ids) if len(tokens) > budget}
        kept = [keep_nearest(row, tokenizer, budget) if i in long else row for i, row in enumerate(examples)]
        made = encode_sequences(
            [(marked_text(row), None) for row in kept],
            labels,
            tokenizer,
            max_length,
            training=True,
            offsets=[marker_offsets(row) for row in kept],
        )
        return [[replace(feature, truncated=feature.truncated or i in long)] for i, (feature,) in enumerate(made)]

    def labels_of(self, example: MarkedText) -> list[str]:
        """Its relation."""
        return [str(example.label)]

    def count(self, example: MarkedText) -> int:
        """One relation a row, the negative one too."""
        return 1

    def decode(
        self, example: MarkedText, features: Sequence[Feature], logits: Sequence["Tensor"]
    ) -> RelationPrediction:
        """The most probable relation."""
        (output,) = logits
        probabilities = (output.float() / temperature_of(self.state)).softmax(-1)
        best = int(probabilities.argmax())
        label = self.labels[best]
        backward = bool(_BACKWARD.search(label))
        return RelationPrediction(example.text, example.head, example.tail, label, float(probabilities[best]), backward)

    def fit_temperature(
        self,
        examples: Sequence[MarkedText],
        features: Sequence[Sequence[Feature]],
        outputs: Sequence[Sequence["Tensor"]],
    ) -> None:
        """Set the temperature at which the relations of `examples` are most probable."""
        if examples:
            logits = torch.stack([output.float() for (output,) in outputs]).numpy()
            targets = [self.labels.index(str(example.label)) for example in examples]
            self.state[TEMPERATURE] = fit_class_temperature(logits, targets)

    def score(self, examples: Sequence[MarkedText], predictions: Sequence[RelationPrediction]) -> Scores:
        """Macro precision, recall and F1 over the relations that occur, without the negative one, and accuracy."""
        gold, prediction = [str(row.label) for row in examples], [row.label for row in predictions]
        right = Counter(relation_of(a) for a, b in zip(gold, prediction, strict=True) if a == b)
        asked, answered = (Counter(map(relation_of, labels)) for labels in (gold, prediction))
        rows = {name: _f1(right[name], answered[name], asked[name]) for name in sorted(asked)}
        positive = [values for name, values in rows.items() if name != self.negative_label]
        macro = {
            name: sum(values[name] for values in positive) / max(1, len(positive))
            for name in ("precision", "recall", "f1")
        }
        accuracy = sum(right.values()) / max(1, len(gold))
        counts = sklearn_metrics.confusion_matrix(gold, prediction, labels=self.labels).tolist() if gold else []
        correct = [a == b for a, b in zip(gold, prediction, strict=True)]
        calibration = measure_calibration([row.score for row in predictions], correct)
        confusion = Confusion(self.labels, counts) if gold else None
        return Scores({**macro, "accuracy": accuracy}, rows, confusion, calibration=calibration)


def relation_of(label: str) -> str:
    """A label without its direction: `Cause-Effect(e1,e2)` → `Cause-Effect`."""
    return _DIRECTION.sub("", label)


def _f1(right: int, answered: int, asked: int) -> dict[str, float]:
    precision, recall = right / answered if answered else 0.0, right / asked if asked else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "support": asked}

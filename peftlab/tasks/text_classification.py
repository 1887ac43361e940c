"""One label for a text or a pair of texts, or, with `multi_label`, any number of labels.

A long text is read in overlapping windows whose log probabilities are averaged. Scores are scikit-learn's.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftlab.data import Row
from peftlab.data.rows import BlankRowError, RowError
from peftlab.errors import ErrorCollector
from peftlab.imports import sklearn_metrics, torch
from peftlab.tasks.heads import ClassificationHead, MultiLabelHead
from peftlab.tasks.inputs.columns import chosen_form, json_cell, quoted, text_column
from peftlab.tasks.inputs.features import Feature
from peftlab.tasks.inputs.text import TextInputs
from peftlab.tasks.inputs.text_pair import (
    TextPair,
    TextPairPrediction,
    encode_sequences,
    find_pairs,
    read_pair,
    second_text,
)
from peftlab.tasks.labels.label_cells import find_separator, split_labels
from peftlab.tasks.labels.label_set import fit_labels_from_examples
from peftlab.tasks.task import Confusion, Metric, Scores, Targets, Task

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class LabelledText(TextPair):
    """A text or a pair, and its labels: exactly one, unless the task is multi-label."""

    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassPrediction(TextPairPrediction):
    """The labels given to a text, and the probability of each label there is."""

    labels: tuple[str, ...]
    probabilities: Mapping[str, float]

    @property
    def label(self) -> str:
        """The most probable label."""
        return max(self.probabilities, key=lambda label: self.probabilities[label])

    def as_dict(self) -> dict[str, Any]:
        """`text` (and `text_pair`), `labels`, and `scores`, the probabilities, falling."""
        falling = sorted(self.probabilities.items(), key=lambda item: -item[1])
        return {
            **self.input_fields,
            "labels": list(self.labels),
            "scores": {name: round(seed, 4) for name, seed in falling},
        }


class TextClassificationTask(Task):
    """Rows have `text` (and `text_pair`), and `label`, or `labels` with multi_label."""

    type = "text-classification"

    def __init__(
        self,
        *,
        labels: list[str] | None = None,
        multi_label: bool = False,
        threshold: float = 0.5,
        class_weights: str | None = None,
        labels_by_number: bool = True,
    ) -> None:
        super().__init__(labels=labels)
        self.labels_by_number = labels_by_number and bool(labels)
        self.separator: str | None = None
        self.multi_label = multi_label
        self.threshold = threshold
        self.class_weights = class_weights
        self.weights: list[float] | None = None
        self.metric = Metric("micro_f1" if multi_label else "accuracy", self.score)
        self.targets = Targets("labels", self.count, labels_of=self.labels_of)

    @property
    def head(self) -> ClassificationHead:
        """One output per label."""
        kind = MultiLabelHead if self.multi_label else ClassificationHead
        return kind(self.labels, self.weights, pooling=self.state.get("pooling"))

    def output_help(self) -> str:
        """How to read several labels."""
        return f"A label is given where the sigmoid of its logit reaches {self.threshold}." if self.multi_label else ""

    @property
    def options(self) -> dict[str, Any]:
        """What prediction depends on."""
        options = {"multi_label": self.multi_label, "threshold": self.threshold}
        return options | ({"labels_by_number": True} if self.labels_by_number else {})

    def read(self, row: Row) -> LabelledText:
        """A row → texts and labels. Raises RowError with what was expected."""
        label = "labels" if self.multi_label else "label"
        chosen_form(row, ("text", label))
        pair = second_text(row, text_column, pairs=self.state.get("pairs", False))
        value = row.fields[label]
        names = self._label_list(value) if self.multi_label else [self._label(value, "label")]
        return LabelledText(text_column(row, "text"), row.where, text_pair=pair, labels=tuple(dict.fromkeys(names)))

    def read_input(self, row: Row) -> TextPair:
        """Read a text or a pair of texts."""
        return read_pair(row, pairs=self.state.get("pairs", False))

    def _label_list(self, value: Any) -> list[str]:
        """Several labels; a table's cell may hold them as JSON, or separated; see `split_labels`."""
        if isinstance(value, str):
            stripped = value.strip()
            is_json = stripped.startswith("[")
            value = json_cell(stripped, "labels") if is_json else split_labels(stripped, self.labels, self.separator)
        if not isinstance(value, list):
            kind = BlankRowError if value is None else RowError
            raise kind(f"expected labels to be a list of names, found {quoted(value)}")
        return [self._label(item, "each of labels") for item in value]

    def inspect_rows(self, rows: Sequence[Row], errors: ErrorCollector) -> None:
        """Find the separator of labels in the cells of a split."""
        self.separator = find_separator(row.fields.get("labels") for row in rows) if self.multi_label else None

    def _label(self, value: Any, what: str) -> str:
        """The label's name; a number is an index of the recipe's labels, if it lists them."""
        if value is None or (isinstance(value, str) and not value.strip()):
            raise BlankRowError(f"expected {what} to be a name or a whole number, found {quoted(value)}")
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise RowError(f"expected {what} to be a name or a whole number, found {quoted(value)}")
        name = str(value).strip()
        numbered = any(label.isdecimal() for label in self.labels)  # then a number is a name, known or not
        if self.labels_by_number and name.isdecimal() and not numbered and int(name) < len(self.labels):
            return self.labels[int(name)]
        return name

    def fit_labels(self, examples: Mapping[str, Sequence[LabelledText]], errors: ErrorCollector) -> None:
        """Labels of the training rows, unless the recipe lists them, and their weights."""
        self.labels = fit_labels_from_examples(self.labels, examples, self.labels_of, errors)
        self.state |= find_pairs(examples, errors)
        if len(self.labels) < (1 if self.multi_label else 2) and examples["train"]:
            errors.add(
                f"the training rows hold {len(self.labels)} label(s): {', '.join(self.labels) or 'none'}; nothing to "
                "tell apart.",
                key="data.train",
            )
        if self.class_weights == "balanced" and examples["train"]:
            self.weights = self._balanced(examples["train"])

    def _balanced(self, examples: Sequence[LabelledText]) -> list[float]:
        """As scikit-learn's `balanced`: rows / (labels × rows with it); multi-label: rows without / rows with it."""
        counts = Counter(label for example in examples for label in example.labels)
        rows = len(examples)
        if self.multi_label:
            return [(rows - counts[label]) / max(1, counts[label]) for label in self.labels]
        return [rows / (len(self.labels) * max(1, counts[label])) for label in self.labels]

    def encode(
        self, examples: Sequence[TextPair], inputs: TextInputs, max_length: int, *, training: bool
    ) -> list[list[Feature]]:
        """See `Task.encode`."""
        labels = [self._target(row.labels) if isinstance(row, LabelledText) else None for row in examples]
        texts = [(row.text, row.text_pair) for row in examples]
        return encode_sequences(texts, labels, inputs.tokenizer, max_length, training=training)

    def _target(self, names: Sequence[str]) -> Any:
        if self.multi_label:
            return [float(label in names) for label in self.labels]
        return self.labels.index(names[0])

    def labels_of(self, example: LabelledText) -> tuple[str, ...]:
        """Its labels."""
        return example.labels

    def count(self, example: LabelledText) -> int:
        """Its labels."""
        return len(example.labels)

    def decode(
        self, example: TextPair, features: Sequence[Feature], logits: Sequence["torch.Tensor"]
    ) -> ClassPrediction:
        """The mean over the windows → one label, or every label above the threshold."""
        mean = torch.stack([output.float() for output in logits])
        probabilities = mean.sigmoid().mean(0) if self.multi_label else mean.log_softmax(-1).mean(0).softmax(-1)
        by_label = dict(zip(self.labels, probabilities.tolist(), strict=True))
        if self.multi_label:
            given = tuple(label for label, seed in by_label.items() if seed >= self.threshold)
        else:
            given = (self.labels[int(probabilities.argmax())],)
        return ClassPrediction(example.text, example.text_pair, given, by_label)

    def score(self, examples: Sequence[LabelledText], predictions: Sequence[ClassPrediction]) -> Scores:
        """Accuracy, macro and micro F1, Matthews' coefficient (one label), and scores by label."""
        if not examples:
            return Scores({self.metric.name: 0.0})
        return self._score_sets(examples, predictions) if self.multi_label else self._score_one(examples, predictions)

    def _score_one(self, examples: Sequence[LabelledText], predictions: Sequence[ClassPrediction]) -> Scores:
        gold, prediction = [row.labels[0] for row in examples], [row.labels[0] for row in predictions]
        present = [label for label in self.labels if label in {*gold, *prediction}]
        values = {
            "accuracy": sklearn_metrics.accuracy_score(gold, prediction),
            "macro_f1": sklearn_metrics.f1_score(gold, prediction, labels=present, average="macro", zero_division=0),
            "micro_f1": sklearn_metrics.f1_score(gold, prediction, labels=present, average="micro", zero_division=0),
            "matthews": sklearn_metrics.matthews_corrcoef(gold, prediction) if len({*gold, *prediction}) > 1 else 0.0,
        }
        counts = sklearn_metrics.confusion_matrix(gold, prediction, labels=self.labels)
        return Scores(
            _floats(values), self._by_label(gold, prediction, self.labels), Confusion(self.labels, counts.tolist())
        )

    def _score_sets(self, examples: Sequence[LabelledText], predictions: Sequence[ClassPrediction]) -> Scores:
        # one column more, always false: scikit-learn takes a table of one column for a binary task
        gold, prediction = (
            [[*(label in row.labels for label in self.labels), False] for row in rows]
            for rows in (examples, predictions)
        )
        columns = list(range(len(self.labels)))
        values = {
            "micro_f1": sklearn_metrics.f1_score(gold, prediction, labels=columns, average="micro", zero_division=0),
            "macro_f1": sklearn_metrics.f1_score(gold, prediction, labels=columns, average="macro", zero_division=0),
            "accuracy": sklearn_metrics.accuracy_score(gold, prediction),  # rows with every label right
        }
        return Scores(_floats(values), self._by_label(gold, prediction, columns))

    def _by_label(self, gold: Any, prediction: Any, labels: Any) -> dict[str, dict[str, float]]:
        columns = sklearn_metrics.precision_recall_fscore_support(
            gold, prediction, labels=list(labels), zero_division=0
        )
        return {
            label: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for label, p, r, f, n in zip(self.labels, *columns, strict=True)
        }


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def imported_options(
    names: Sequence[str], multi_label: bool, threshold: float | None, config: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of an imported adapter."""
    return {"labels": list(names), "multi_label": multi_label} | ({} if threshold is None else {"threshold": threshold})
